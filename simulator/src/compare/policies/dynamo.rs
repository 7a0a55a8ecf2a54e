//! NVIDIA Dynamo's KV router, 1.6: its cost, by default.

use super::{Ask, Choose, Pick, least};
use crate::dice::Dice;

/// `prefill scale * max(active prefill + prompt - overlap, 0) + active blocks`, all in blocks, at
/// temperature 0, ties at random. Its active blocks count what requests share once; ours, each time.
pub(super) struct Dynamo {
    dice: Dice,
}

const PREFILL_SCALE: f64 = 1.0;

impl Dynamo {
    pub(super) fn new(dice: Dice) -> Self {
        Self { dice }
    }
}

impl Choose for Dynamo {
    fn pick(&mut self, ask: &mut Ask<'_, '_>) -> Pick {
        let (cached, size) = (ask.cached(), f64::from(ask.block_size));
        let prompt = ask.prompt.tokens() as f64;
        let pods = ask.pods.iter().zip(&cached);
        let costs = pods.map(|(pod, cached)| {
            let waiting = pod.load.prefill_tokens as f64;
            let prefill = (waiting + prompt - cached.own as f64).max(0.0) / size;
            let active = (pod.load.prompt_tokens as f64 + prompt) / size;
            PREFILL_SCALE * prefill + active
        });
        let place = least(&mut self.dice, costs);
        let cached_tokens = cached[place].own;
        Pick {
            place,
            cached_tokens,
        }
    }
}
