//! The index from outside: after every act it answers as a list of copies does, and whoever reads
//! while others write sees every endpoint between two of its events.
//!
//! `PROPTEST_CASES` asks for more: 1,000 take about a minute, and those with long chains five.

use kvscout::blocks::{Chain, Chains};
use kvscout::fleet::EndpointId;
use kvscout::index::{Index, Size};
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;

#[path = "index/acts.rs"]
mod acts;
#[path = "index/model.rs"]
mod model;
#[path = "index/readers.rs"]
mod readers;

use acts::{Act, PODS, Text, acts};
use model::{Model, Told};

/// What the index says of each endpoint, and of each prompt there.
fn told(index: &Index, endpoints: &[EndpointId], model: &Model) -> Vec<Told> {
    let of_endpoint = |id: &EndpointId| Told {
        prompts: Vec::new(),
        blocks: index.blocks_of(*id),
        physical: index.physical(*id),
        digest: index.digest(*id),
        shape: index.shape(*id),
        alignment: index.alignment(*id),
        shows_salt: index.shows_salt(*id),
        has_unmodelled: index.has_unmodelled(*id),
    };
    let mut told: Vec<Told> = endpoints.iter().map(of_endpoint).collect();
    for prompt in &model.prompts {
        let mut chains = Chains::new(&prompt.tokens, &prompt.identity);
        let cached = index.cached(endpoints, &mut chains);
        for ((id, told), cached) in endpoints.iter().zip(&mut told).zip(cached) {
            let held = told.shape.map_or(0, |shape| {
                let keys = &chains.of(shape).keys;
                let ends = (1..=keys.len()).map(|end| Chain {
                    shape,
                    keys: keys[..end].to_vec(),
                });
                ends.filter(|chain| index.holds(*id, chain)).count()
            });
            told.prompts.push((cached, held));
        }
    }
    told
}

/// Whether both agree on all that can be asked, after each of these acts.
fn agree(texts: &[Text], acts: &[Act]) -> Result<(), TestCaseError> {
    let mut model = Model::new(texts.iter().map(Text::prompt).collect());
    let mut index = Index::default();
    let endpoints: Vec<EndpointId> = (0..PODS).map(EndpointId).collect();
    for (at, act) in acts.iter().enumerate() {
        act.act(&mut index, &mut model, texts)?;
        let expected: Vec<Told> = endpoints.iter().map(|id| model.told(*id)).collect();
        let told = told(&index, &endpoints, &model);
        prop_assert_eq!(told, expected, "after act {}", at);
        prop_assert_eq!(index.size(), model.size(), "after act {}", at);
    }
    endpoints.iter().for_each(|id| index.forget(*id));
    prop_assert_eq!(index.size(), Size::default());
    Ok(())
}

/// So many cases, if nobody asks for others.
fn config(cases: u32) -> ProptestConfig {
    let seeds = FileFailurePersistence::Direct("proptest-regressions/index.txt");
    ProptestConfig {
        failure_persistence: Some(Box::new(seeds)),
        ..ProptestConfig::with_cases(cases)
    }
}

/// Anywhere in a chain that needs several runs, and where these would end.
fn far() -> impl Strategy<Value = usize> + Clone {
    prop_oneof![
        0..40usize,
        (1..=2usize, 0..=4usize).prop_map(|(runs, beside)| runs * 1024 + beside - 2),
        0..2600usize,
    ]
}

proptest! {
    #![proptest_config(config(256))]

    #[test]
    fn after_every_act_the_index_answers_as_a_list_of_copies_does(
        (texts, acts) in acts(5, 200, 0..12usize),
    ) {
        agree(&texts, &acts)?;
    }
}

proptest! {
    #![proptest_config(config(24))]

    #[test]
    fn chains_that_part_far_from_their_start_are_told_apart(
        (texts, acts) in acts(3, 80, far()),
    ) {
        agree(&texts, &acts)?;
    }
}
