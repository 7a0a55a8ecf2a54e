//! What a request wants, before its prompt is read.

use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64;

use super::{Ask, Scheduler};
use crate::config::Criticality;
use crate::prompt::json::Json;
use crate::prompt::json::outline::{Outline, Replacement};
use crate::prompt::{Api, PromptError, conversation};
use crate::routes::Class;

/// What the rules say of a request.
#[derive(Debug, Clone, Default)]
pub(super) struct Intent {
    /// How important it is.
    pub class: Class,
    /// The model that serves it in place of the one that it names.
    pub target: Option<Arc<str>>,
    /// The change of its body that makes it so.
    pub rewrite: Option<Replacement>,
}

impl Scheduler {
    /// Reads the rules for a request. Where models have any, its body is looked through here and not
    /// on the pool, which may be busy: another model than the server's would be an error of ours.
    pub(super) fn intent(&self, ask: &Ask) -> Intent {
        let routes = self.parts.routes.borrow().clone();
        let looks = routes.name_models() || ask.target.is_some();
        let outline = looks.then(|| Outline::of(&ask.body));
        let outline = outline.flatten();
        let named = outline.as_ref().and_then(|outline| outline.json("model"));
        let name = named.as_ref().and_then(Json::as_str);
        let class = match Api::of_path(&ask.path) {
            // What the engine has no work with needs no room.
            Err(PromptError::NoPrefill) => Class {
                criticality: Criticality::Critical,
                ..Class::default()
            },
            _ => self.class(name, ask.objective.as_deref()),
        };
        let (Some(name), Some(outline)) = (name, &outline) else {
            return Intent {
                class,
                ..Intent::default()
            };
        };
        // Without a conversation, any share will do: the request's own, then.
        let conversation = conversation::key(ask.session.as_deref(), Some(outline));
        let conversation = conversation.unwrap_or_else(|| xxh3_64(ask.request_id.as_bytes()));
        let target = routes.target(name, conversation);
        if let Some(target) = target {
            self.parts.metrics.served_by(name, target);
        }
        let said = || ask.target.as_deref().map(Arc::from);
        let other = target.cloned().or_else(said);
        let other = other.filter(|target| **target != *name);
        Intent {
            class,
            rewrite: other
                .as_deref()
                .map(|target| outline.replaced("model", target)),
            target: other,
        }
    }

    /// How important a request is.
    pub(super) fn class(&self, model: Option<&str>, objective: Option<&str>) -> Class {
        let class = self.parts.routes.borrow().class(model, objective);
        class.unwrap_or_else(|standard| {
            self.parts.metrics.objective_unknown();
            standard
        })
    }
}
