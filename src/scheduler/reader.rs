//! Body → tokens, for models whose folders we have.

use std::collections::HashMap;
use std::sync::Arc;

use anyhow::Context;

use super::{Ask, Reading};
use crate::blocks::Identity;
use crate::choice::Basis;
use crate::config::{self, Config};
use crate::prompt::{Prompt, PromptError, Request};
use crate::prompt::template::Renderer;
use crate::tokens::{self, TokenPool, Tokenizer};

/// One model's template and vocabulary.
pub struct Model {
    renderer: Renderer,
    tokenizer: Arc<dyn Tokenizer>,
}

/// A name that requests give.
#[derive(Clone)]
struct Named {
    model: Arc<Model>,
    adapter: Option<String>,
}

/// Reads prompts of the models that it was given.
pub struct Reader {
    models: HashMap<String, Named>,
    pool: TokenPool,
}
