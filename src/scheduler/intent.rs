//! What a request wants, before its prompt is read.

use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64;

use super::{Ask, Scheduler};
use crate::config::Criticality;
use crate::fleet::{Pools, Scope};
use crate::prompt::json::Json;
use crate::prompt::json::outline::{Outline, Replacement};
use crate::prompt::{Api, PromptError, conversation};
use crate::routes::Class;

/// What the rules say of a request.
#[derive(Debug, Clone)]
pub(super) struct Intent {
    /// Whom it may have.
    pub scope: Scope,
    /// How important it is.
    pub class: Class,
    /// What its objective or model is known by; `false` where it names one that nobody declared.
    pub objective_known: bool,
    /// The model that it asks for, where rules give that targets: its name, or `*` where no rule has it.
    pub named: Option<Arc<str>>,
    /// Which target serves it, also where that is the model itself.
    pub served_by: Option<Arc<str>>,
    /// The model that serves it in place of the one that it names.
    pub target: Option<Arc<str>>,
    /// The change of its body that makes it so.
    pub rewrite: Option<Replacement>,
}

impl Default for Intent {
    fn default() -> Self {
        Self {
            scope: Scope::default(),
            class: Class::default(),
            objective_known: true,
            named: None,
            served_by: None,
            target: None,
            rewrite: None,
        }
    }
}

impl Scheduler {
    /// Reads the rules for a request. Where models have any, its body is looked through here and not
    /// on the pool, which may be busy: another model than the server's would be an error of ours.
    pub(super) fn intent(&self, ask: &Ask) -> Intent {
        let routes = self.parts.routes.borrow().clone();
        let scope = self.scope(&ask.pool, ask.subset.clone());
        let is_among = matches!(scope.pools, Pools::Among(_));
        let looks = routes.name_models() || ask.target.is_some() || is_among;
        let outline = looks.then(|| Outline::of(&ask.body));
        let outline = outline.flatten();
        let named = outline.as_ref().and_then(|outline| outline.json("model"));
        let name = named.as_ref().and_then(Json::as_str);
        let objective = ask.objective.as_deref();
        let scope = self.narrowed(scope, &routes, (name, objective));
        let rules = routes.rules(scope.pools.one());
        let (class, objective_known) = match Api::of_path(&ask.path) {
            // What the engine has no work with needs no room.
            Err(PromptError::NoPrefill) => {
                let class = Class {
                    criticality: Criticality::Critical,
                    ..Class::default()
                };
                (class, true)
            }
            _ => known(rules.class(name, objective)),
        };
        let (Some(name), Some(outline)) = (name, &outline) else {
            return Intent {
                scope,
                class,
                objective_known,
                ..Intent::default()
            };
        };
        // Without a conversation, any share will do: the request's own, then.
        let conversation = conversation::key(ask.session.as_deref(), Some(outline));
        let conversation = conversation.unwrap_or_else(|| xxh3_64(ask.request_id.as_bytes()));
        let target = rules.target(name, conversation);
        let said = || ask.target.as_deref().map(Arc::from);
        let other = target.cloned().or_else(said);
        let other = other.filter(|target| **target != *name);
        Intent {
            named: target.map(|_| rules.known(name)),
            class,
            objective_known,
            served_by: target.cloned(),
            rewrite: other
                .as_deref()
                .map(|target| outline.replaced("model", target)),
            target: other,
            scope,
        }
    }

    /// Counts what the rules said.
    pub(super) fn count(&self, intent: &Intent) {
        self.count_class(intent.objective_known);
        if let (Some(named), Some(target)) = (&intent.named, &intent.served_by) {
            self.parts.metrics.served_by(named, target);
        }
    }

    /// Counts an objective that nobody declared.
    pub(super) fn count_class(&self, known: bool) {
        if !known {
            self.parts.metrics.objective_unknown();
        }
    }
}

/// How important a request is, and whether its objective is a known one.
pub(super) fn known(class: Result<Class, Class>) -> (Class, bool) {
    match class {
        Ok(class) => (class, true),
        Err(standard) => (standard, false),
    }
}
