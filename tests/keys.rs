//! Names of blocks and the secret that they are mixed with, which a process has one of: so a process of its own.

use kvscout::blocks::{BlockKey, Chain, Identity, KEYS_VERSION, keys_version, mix_with};

#[test]
fn names_of_blocks_depend_on_the_secret_and_on_nothing_else_of_the_process() {
    let identity = Identity {
        adapter: Some("sql".into()),
        cache_salt: Some("tenant".into()),
    };
    let tokens: Vec<u32> = (0..3000).collect();
    // Short, long and very long blocks are hashed in different ways.
    let names = || -> Vec<Vec<BlockKey>> {
        let sizes = [16, 64, 1024];
        let chains = sizes.map(|size| Chain::of_full_blocks(&tokens, size, &identity));
        chains.map(|chain| chain.keys).to_vec()
    };
    let plain = names();
    assert_eq!(keys_version(), KEYS_VERSION);
    mix_with(b"the first of two secrets");
    let (first, version) = (names(), keys_version());
    assert_ne!(version, KEYS_VERSION);
    mix_with(b"the other of two secrets");
    let second = names();
    assert_ne!(keys_version(), version);
    for [one, other] in [[&plain, &first], [&first, &second], [&plain, &second]] {
        let pairs = one.iter().flatten().zip(other.iter().flatten());
        assert!(pairs.clone().count() > 200);
        assert!(pairs.clone().all(|(one, other)| one != other));
    }
    mix_with(b"the first of two secrets");
    assert_eq!((names(), keys_version()), (first, version));
}
