//! What came of one model's watches, and whether its prompts are to be believed.

use super::Verdict;

/// How many of the last judgements count: as many as one word has bits, and at a request a
/// second half a minute.
const WINDOW: u32 = 32;

/// Judgements before the first doubt. Two of four have to differ: where one in a thousand
/// differed by accident, a model would be doubted wrongly once in 170,000 starts
/// (6 pairs × 10⁻⁶); a wrong template is found with its fourth request.
const JUDGED_MIN: u32 = 4;

/// Doubtful above a quarter: 9 of 32. A wrong generation prompt of 4 tokens touches the last full
/// block of one prompt in four (blocks of 16), a wrong template that of every prompt.
const DOUBT_ABOVE: u32 = 4;

/// Believed again at an eighth, 4 of 32, so that a share about a quarter does not flap.
const BELIEVE_AT: u32 = 8;

/// One model's record.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    /// Watches that agreed.
    pub agree: u64,
    /// Watches that differed.
    pub differ: u64,
    /// Watches of which nobody knows.
    pub unjudged: u64,
    /// The last judgements, the latest in the lowest bit; 1 is a difference.
    window: u32,
    judged: u32,
    doubtful: bool,
}

impl Record {
    /// Whether too many of the last judgements were differences.
    #[must_use]
    pub fn is_doubtful(&self) -> bool {
        self.doubtful
    }

    /// Counts one; says whether the model is doubtful now, where that has changed.
    pub(super) fn count(&mut self, verdict: Verdict) -> Option<bool> {
        let differs = match verdict {
            Verdict::Agree => {
                self.agree += 1;
                false
            }
            Verdict::Differ(_) => {
                self.differ += 1;
                true
            }
            Verdict::Unjudged => {
                self.unjudged += 1;
                return None;
            }
        };
        self.window = self.window << 1 | u32::from(differs);
        self.judged = (self.judged + 1).min(WINDOW);
        let differing = self.window.count_ones();
        let doubtful = if self.doubtful {
            differing * BELIEVE_AT > self.judged
        } else {
            self.judged >= JUDGED_MIN && differing * DOUBT_ABOVE > self.judged
        };
        let changed = std::mem::replace(&mut self.doubtful, doubtful) != doubtful;
        changed.then_some(doubtful)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Fork;
    use super::*;

    const DIFFER: Verdict = Verdict::Differ(Fork::Block(0));

    /// Whether the model is doubtful after each judgement.
    fn doubts(verdicts: impl IntoIterator<Item = Verdict>) -> Vec<bool> {
        let mut record = Record::default();
        let each = |verdict| {
            record.count(verdict);
            record.is_doubtful()
        };
        verdicts.into_iter().map(each).collect()
    }

    #[test]
    fn a_wrong_template_is_found_with_its_fourth_request() {
        assert_eq!(doubts([DIFFER; 4]), [false, false, false, true]);
    }

    #[test]
    fn a_quarter_is_not_enough_and_more_than_that_is() {
        let one_in_four = [Verdict::Agree, Verdict::Agree, Verdict::Agree, DIFFER];
        assert!(!doubts(one_in_four.repeat(20)).contains(&true));
        let nine = [vec![Verdict::Agree; 32], vec![DIFFER; 9]].concat();
        let doubted = doubts(nine);
        assert_eq!((doubted[39], doubted[40]), (false, true));
    }

    #[test]
    fn what_cannot_be_judged_changes_nothing() {
        let verdicts = [DIFFER, DIFFER, DIFFER, Verdict::Unjudged];
        assert!(!doubts(verdicts).contains(&true));
    }

    #[test]
    fn a_mended_server_is_believed_again_once_the_window_has_moved_on() {
        let doubted = doubts([vec![DIFFER; 40], vec![Verdict::Agree; 40]].concat());
        let mended = doubted.iter().rposition(|doubtful| *doubtful);
        assert_eq!(mended, Some(40 + 26), "32 - 4 = 28 agreements mend it");
    }

    #[test]
    fn a_change_is_told_once() {
        let mut record = Record::default();
        let told: Vec<_> = [DIFFER; 6].map(|verdict| record.count(verdict)).into();
        assert_eq!(told, [None, None, None, Some(true), None, None]);
    }
}
