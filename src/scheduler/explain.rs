//! The decision for a request as of now, which nobody carries out: no load is booked, no prompt expected,
//! nothing counted, nothing kept.

use std::sync::Arc;
use std::time::Instant;

use super::reading::Reading;
use super::{Ask, Readings, Refusal, Scheduler, lap};
use crate::admission::Outlook;
use crate::blocks::Shape;
use crate::config::Strategy;
use crate::decisions::what_if::Knobs;
use crate::decisions::{Decision, Made, Took};
use crate::fleet::{EndpointId, Fleet};
use crate::routes::Class;

/// What would become of a request. Of its prompt it says what the endpoint would read that would get it.
#[derive(Debug)]
pub struct Explanation {
    /// Where it would go, and why. Its number is 0.
    pub decision: Decision,
    /// How important it is.
    pub class: Class,
    /// Whether it would go on at once.
    pub outlook: Outlook,
    /// Bytes of its prompts' texts, once rendered; none where they are token ids or were not read.
    pub rendered_bytes: Option<usize>,
    /// Tokens of the (first) prompt that are known.
    pub tokens: usize,
    /// Prompts that it has.
    pub prompts: usize,
    /// How endpoints that read it alike cut the prompt, and into how many blocks that can be cached.
    pub blocks: Vec<(Shape, usize)>,
}

/// Why there is nothing to explain.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unexplained {
    /// It would be refused.
    #[error("{0}")]
    Refused(#[from] Refusal),
    /// A what-if names an endpoint that is not there.
    #[error("without: no endpoint is called {0:?}; /endpoints names them")]
    Stranger(String),
    /// A what-if leaves nobody.
    #[error("without: nobody is left to choose")]
    NobodyLeft,
}

impl Scheduler {
    /// Explains what [`Scheduler::place`] would do, were some things otherwise.
    ///
    /// # Errors
    /// See [`Unexplained`].
    pub async fn explain(&self, ask: &Ask, knobs: &Knobs) -> Result<Explanation, Unexplained> {
        let (mut took, mut since) = (Took::default(), Instant::now());
        let intent = self.intent(ask);
        let (scope, strategy) = (&intent.scope, self.strategy(&intent.scope));
        let allowed = without(self.find_allowed(scope)?, &knobs.without)?;
        // What is asked is what would be, not whether to read it.
        let readings = match (knobs.strategy, strategy) {
            (None, Strategy::Default) => {
                Readings::alike(Reading::load_only("strategy", ask.body.len()))
            }
            _ => self.read(ask, &intent, &allowed).await,
        };
        took.read = lap(&mut since);
        (took.render, took.tokenize) = readings.took();
        let readings = self.doubted(readings, &allowed);
        let told = (ask.session.as_deref(), &ask.body[..]);
        let readings = self.in_conversation(readings, strategy, told);
        let mut prompts = readings.chains();
        let held = self.overlaps(&readings, &mut prompts, &allowed);
        took.overlap = lap(&mut since);
        let mut case = self.case(&ask.request_id, &readings, &allowed, held);
        let names = |id: EndpointId| {
            let mut all = allowed.endpoints.iter();
            all.find(|one| one.id == id).map_or("", |one| &*one.name)
        };
        knobs.turn(&mut case, names);
        let choice = case.choose().ok_or(Refusal::NoEndpoint)?;
        took.choose = lap(&mut since);
        let reading = readings.at(choice.prompt);
        let blocks = prompts[usize::from(choice.prompt)].all_made();
        Ok(Explanation {
            class: intent.class,
            outlook: self.admission.outlook(intent.class, scope),
            rendered_bytes: reading.rendered_bytes,
            tokens: reading.tokens.len(),
            prompts: reading.prompts,
            blocks: blocks
                .map(|chain| (chain.shape, chain.keys.len()))
                .collect(),
            decision: Decision::of(
                Made {
                    trace: None,
                    model: reading.model.clone(),
                    target: intent.target,
                    pool: intent.scope.pools.one().cloned(),
                    case,
                    fleet: allowed,
                    choice,
                    took,
                },
                0,
            ),
        })
    }
}

fn without(fleet: Arc<Fleet>, names: &[String]) -> Result<Arc<Fleet>, Unexplained> {
    let is_there = |name: &&String| fleet.endpoints.iter().any(|one| one.name == **name);
    if let Some(stranger) = names.iter().find(|name| !is_there(name)) {
        return Err(Unexplained::Stranger(stranger.clone()));
    }
    if names.is_empty() {
        return Ok(fleet);
    }
    let left = fleet
        .endpoints
        .iter()
        .filter(|one| !names.contains(&one.name));
    let left: Vec<_> = left.cloned().collect();
    match left.is_empty() {
        true => Err(Unexplained::NobodyLeft),
        false => Ok(Arc::new(Fleet::of(left))),
    }
}
