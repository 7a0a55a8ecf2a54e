use kvscout::blocks::{BlockEvent, Identity, TokenId};

use super::*;

fn engine(num_gpu_blocks: u32) -> Engine {
    Engine::new(EngineConfig {
        block_size: 4,
        num_gpu_blocks,
        ..EngineConfig::default()
    })
}

fn request(prompt: std::ops::Range<TokenId>, output_tokens: u32) -> Request {
    Request {
        prompt: prompt.collect(),
        output: (900..900 + output_tokens).collect(),
        ..Request::default()
    }
}

/// Runs until nothing is left to do; every batch of events, and the last emissions.
fn drain(engine: &mut Engine) -> (Vec<Vec<BlockEvent>>, Vec<Emission>) {
    let (mut batches, mut last) = (Vec::new(), Vec::new());
    while engine.begin_step().is_some() {
        let outcome = engine.finish_step();
        if !outcome.events.is_empty() {
            batches.push(outcome.events);
        }
        last.extend(
            outcome
                .emissions
                .into_iter()
                .filter(|emission| emission.last),
        );
    }
    (batches, last)
}

fn run(engine: &mut Engine, request: Request) -> (Vec<Vec<BlockEvent>>, usize) {
    engine.submit(request).expect("it fits");
    let (batches, last) = drain(engine);
    (batches, last[0].cached_tokens)
}

/// `S3` for three blocks stored, `R` for one removed, `C` for cleared.
fn shape(batches: &[Vec<BlockEvent>]) -> String {
    let word = |event: &BlockEvent| match event {
        BlockEvent::Stored(stored) => format!("S{}", stored.hashes.len()),
        BlockEvent::Removed { .. } => "R".to_owned(),
        BlockEvent::Cleared => "C".to_owned(),
    };
    let line = |batch: &Vec<BlockEvent>| batch.iter().map(word).collect::<Vec<_>>().join(" ");
    batches.iter().map(line).collect::<Vec<_>>().join(" | ")
}

fn stored<'a>(batches: &'a [Vec<BlockEvent>]) -> Vec<&'a kvscout::blocks::Stored> {
    let of = |event: &'a BlockEvent| match event {
        BlockEvent::Stored(stored) => Some(stored),
        _ => None,
    };
    batches.iter().flatten().filter_map(of).collect()
}

#[test]
fn the_last_token_of_a_prompt_is_always_computed() {
    let cached = |tokens: TokenId| {
        let mut engine = engine(32);
        run(&mut engine, request(0..tokens, 1));
        run(&mut engine, request(0..tokens, 1)).1
    };
    assert_eq!(
        (cached(3), cached(4), cached(5), cached(8), cached(9)),
        (0, 0, 4, 4, 8)
    );
}

#[test]
fn a_repeated_prompt_is_stored_a_second_time() {
    let mut engine = engine(32);
    let first = run(&mut engine, request(0..8, 1)).0;
    let second = run(&mut engine, request(0..8, 1)).0;
    assert_eq!((shape(&first), shape(&second)), ("S2".into(), "S1".into()));
    assert_eq!(stored(&first)[0].hashes[1], stored(&second)[0].hashes[0]);
    assert_eq!(stored(&second)[0].parent, Some(stored(&first)[0].hashes[0]));
}

#[test]
fn an_answer_is_stored_block_by_block_without_its_last_token() {
    let mut engine = engine(32);
    let eleven_computed = run(&mut engine, request(0..5, 7)).0;
    assert_eq!(shape(&eleven_computed), "S1 | S1");
    let hashes: Vec<_> = stored(&eleven_computed)
        .iter()
        .map(|event| event.hashes[0])
        .collect();
    assert_eq!(stored(&eleven_computed)[1].parent, Some(hashes[0]));
    assert_eq!(
        shape(&run(&mut engine, request(100..105, 8)).0),
        "S1 | S1 | S1"
    );
}

#[test]
fn requests_of_one_step_share_blocks_that_are_not_computed_yet() {
    let mut engine = engine(64);
    for _ in 0..3 {
        engine.submit(request(0..10, 1)).expect("it fits");
    }
    let (batches, last) = drain(&mut engine);
    let cached: Vec<usize> = last.iter().map(|emission| emission.cached_tokens).collect();
    assert_eq!(cached, [0, 8, 8]);
    assert_eq!(shape(&batches), "S2");
}

#[test]
fn room_is_made_before_blocks_are_stored() {
    let mut engine = engine(5);
    run(&mut engine, request(0..12, 1));
    let (batches, _) = run(&mut engine, request(100..112, 1));
    assert_eq!(shape(&batches), "R R S3", "one block had never been used");
}

#[test]
fn long_prompts_are_computed_in_chunks() {
    let mut engine = Engine::new(EngineConfig {
        block_size: 4,
        max_num_batched_tokens: 6,
        ..EngineConfig::default()
    });
    engine.submit(request(0..14, 1)).expect("it fits");
    let mut prefill = Vec::new();
    while let Some(work) = engine.begin_step() {
        prefill.push(work.prefill_tokens);
        engine.finish_step();
    }
    assert_eq!(prefill, [6, 6, 2]);
}

#[test]
fn a_reset_is_announced_with_the_next_step() {
    let mut engine = engine(32);
    run(&mut engine, request(0..8, 1));
    assert!(engine.reset_prefix_cache());
    assert!(engine.begin_step().is_none());
    let (batches, cached) = run(&mut engine, request(0..9, 1));
    assert_eq!((shape(&batches).as_str(), cached), ("C S2", 0));
}

#[test]
fn prompt_logprobs_skip_reading_but_not_writing() {
    let mut engine = engine(32);
    run(&mut engine, request(0..9, 1));
    let skipping = Request {
        skip_cache_read: true,
        ..request(0..9, 1)
    };
    let (batches, cached) = run(&mut engine, skipping);
    assert_eq!((shape(&batches).as_str(), cached), ("S2", 0));
    assert_eq!(
        engine.stats().query_tokens,
        9,
        "the second prompt asked nothing"
    );
}

#[test]
fn salt_and_adapter_separate_blocks() {
    let mut engine = engine(64);
    let named = |adapter: Option<&str>, salt: Option<&str>| Request {
        identity: Identity {
            adapter: adapter.map(str::to_owned),
            cache_salt: salt.map(str::to_owned),
        },
        ..request(0..9, 1)
    };
    for (adapter, salt) in [(None, None), (Some("a"), None), (None, Some("a"))] {
        assert_eq!(
            run(&mut engine, named(adapter, salt)).1,
            0,
            "{adapter:?} {salt:?}"
        );
        assert_eq!(
            run(&mut engine, named(adapter, salt)).1,
            8,
            "{adapter:?} {salt:?}"
        );
    }
}

#[test]
fn the_newest_gives_way_when_blocks_run_out_and_starts_over() {
    let mut engine = engine(6);
    let first = engine.submit(request(0..7, 9)).expect("it fits");
    let second = engine.submit(request(100..107, 9)).expect("it fits");
    let (_, last) = drain(&mut engine);
    let order: Vec<RequestId> = last.iter().map(|emission| emission.request).collect();
    assert_eq!(order, [first, second]);
    assert!(engine.stats().preemptions > 0);
    assert_eq!(
        engine.stats().prompt_tokens,
        14,
        "a resumed prompt is not counted again"
    );
}

#[test]
fn an_aborted_request_leaves_its_blocks_in_the_cache() {
    let mut engine = engine(32);
    let id = engine.submit(request(0..9, 100)).expect("it fits");
    engine.begin_step();
    engine.finish_step();
    assert!(engine.stats().usage > 0.0);
    engine.abort(id);
    assert_eq!((engine.stats().usage, engine.has_work()), (0.0, false));
    assert_eq!(run(&mut engine, request(0..9, 1)).1, 8);
}

#[test]
fn an_abort_during_a_step_silences_its_request() {
    let mut engine = engine(32);
    let id = engine.submit(request(0..9, 100)).expect("it fits");
    engine.begin_step();
    engine.abort(id);
    assert!(engine.finish_step().emissions.is_empty());
}

#[test]
fn what_can_never_fit_is_refused() {
    let mut engine = engine(4);
    assert!(engine.submit(request(0..12, 1)).is_none());
    assert!(engine.submit(request(0..11, 1)).is_some());
    assert!(engine.submit(request(0..0, 1)).is_none());
}
