use super::*;
use serde::Serialize;

fn pack(value: impl Serialize) -> Vec<u8> {
    rmp_serde::to_vec(&value).expect("packs")
}

fn one_stored(event: impl Serialize) -> Stored {
    let batch = decode(&pack((1.5, (event,), 3))).expect("a batch");
    assert_eq!((batch.malformed, batch.unknown, batch.rank), (0, 0, 3));
    match batch.events.into_iter().next() {
        Some(BlockEvent::Stored(stored)) => stored,
        other => panic!("not stored: {other:?}"),
    }
}

#[derive(Serialize)]
struct Bytes<'a>(#[serde(with = "bin")] &'a [u8]);

mod bin {
    pub(super) fn serialize<S: serde::Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_bytes(bytes)
    }
}

#[test]
fn the_oldest_array_layout_is_read() {
    let stored = one_stored(("BlockStored", (-1i64, 2), (), (1, 2, 3, 4), 2, ()));
    assert_eq!(stored.hashes, [EngineHash(u64::MAX), EngineHash(2)]);
    assert_eq!(stored.tokens, [1, 2, 3, 4]);
    assert_eq!((stored.medium, stored.extra_keys), (Medium::Gpu, None));
}

#[test]
fn integers_and_bytes_name_the_same_block() {
    let digest: Vec<u8> = (0..32).collect();
    let by_bytes = one_stored((
        "BlockStored",
        (Bytes(&digest),),
        Bytes(&digest),
        (9, 9),
        2,
        (),
    ));
    let low = u64::from_be_bytes([24, 25, 26, 27, 28, 29, 30, 31]);
    assert_eq!(by_bytes.hashes, [EngineHash(low)]);
    assert_eq!(by_bytes.parent, Some(EngineHash(low)));
}

#[test]
fn fields_that_do_not_exist_yet_are_passed_over() {
    let extras = ((("a", ("img", -3i64), "salt"), ()),);
    let stored = one_stored((
        "BlockStored",
        (7u64,),
        (),
        (1, 2),
        2,
        1,
        "GPU",
        "a",
        extras.0,
        0,
        "full_attention",
    ));
    assert_eq!(stored.adapter.as_deref(), Some("a"));
    let keys = stored.extra_keys.expect("visible");
    assert_eq!(
        keys[0],
        [
            ExtraKey::At("img".into(), -3),
            ExtraKey::Text("salt".into())
        ]
    );
    assert_eq!(keys[1], []);
    let mut event = std::collections::BTreeMap::new();
    event.insert("type", serde_json::json!("BlockRemoved"));
    event.insert("block_hashes", serde_json::json!([5]));
    event.insert("medium", serde_json::json!("CPU"));
    event.insert("colour", serde_json::json!({"of": ["tomorrow"]}));
    let batch = decode(&pack((1, (event,), 0, "more"))).expect("a batch");
    let group = Group::default();
    let removed = BlockEvent::Removed {
        hashes: vec![EngineHash(5)],
        medium: Medium::Cpu,
        group,
    };
    assert_eq!(batch.events, [removed]);
}

#[test]
fn the_kind_of_a_group_says_what_makes_a_hit() {
    let read =
        |group: i64, kind: Option<&str>, window: Option<u32>, lookahead: Option<Vec<[u32; 1]>>| {
            let event = (
                "BlockStored",
                (1, 2),
                (),
                (5, 6, 7, 8),
                2,
                (),
                "GPU",
                (),
                (),
                group,
                kind,
                window,
                (),
                (),
                (),
                lookahead,
            );
            let batch = decode(&pack((1.0, (event,), 0))).expect("a batch");
            match batch.events.as_slice() {
                [BlockEvent::Stored(stored)] => Some((stored.group.rule, stored.lookahead.clone())),
                _ => None,
            }
        };
    let rule = |group, kind, window| read(group, kind, window, None).expect("stored").0;
    assert_eq!(rule(0, None, None), Rule::All);
    assert_eq!(rule(1, None, None), Rule::Unknown, "before 0.22.1");
    assert_eq!(rule(1, Some("mla_attention"), None), Rule::All);
    assert_eq!(
        rule(1, Some("sliding_window"), Some(4096)),
        Rule::Window(4096)
    );
    assert_eq!(rule(2, Some("mamba"), None), Rule::Last);
    assert_eq!(
        rule(2, Some("chunked_local_attention"), None),
        Rule::Unknown
    );
    let ahead = read(0, None, None, Some(vec![[7], [9]])).expect("stored").1;
    assert_eq!(ahead, [[7], [9]]);
    assert_eq!(
        read(0, None, None, Some(vec![[7]])),
        None,
        "one list for two blocks"
    );
}

#[test]
fn a_bad_event_costs_itself_and_not_its_batch() {
    let good = ("BlockRemoved", (4,));
    let short = ("BlockStored", (1, 2), (), (1, 2, 3), 2);
    let wrong = ("BlockStored", "hash", (), (1, 2), 2);
    let huge = ("BlockStored", (1,), (), (1u64 << 40, 2), 2);
    let future = ("BlockMoved", 1);
    let batch = decode(&pack((1.0, (short, wrong, huge, future, 5, good), ()))).expect("a batch");
    assert_eq!(
        (batch.events.len(), batch.malformed, batch.unknown),
        (1, 4, 1)
    );
}

#[test]
fn bytes_that_are_no_batch_are_an_error() {
    for payload in [
        &b""[..],
        b"\xc1",
        b"\x93\x01",
        b"\x93\xcb",
        &pack("text"),
        &pack((1, 2, 3)),
    ] {
        assert!(decode(payload).is_err(), "{payload:?}");
    }
    let deep = vec![0x91u8; 100_000];
    assert!(matches!(decode(&deep), Err(DecodeError::NotMessagePack(_))));
    let mut nils = vec![0x93, 0x01, 0xdd, 0x00, 0xf0, 0x00, 0x00];
    nils.resize(nils.len() + 0x00f0_0000, 0xc0);
    nils.push(0);
    assert!(
        decode(&nils).is_err(),
        "15 MiB of nil must not become 500 MiB of values"
    );
    let boast = [0x93, 0x01, 0xdd, 0xff, 0xff, 0xff, 0xff];
    assert!(
        decode(&boast).is_err(),
        "a length is a claim, not a reason to reserve memory"
    );
}
