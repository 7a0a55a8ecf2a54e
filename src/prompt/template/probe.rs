//! What vLLM finds out about a template by trying it, for Anthropic's messages
//! (`anthropic/serving.py`). Once a model: the answers do not change.

use std::sync::OnceLock;

use super::{Json, OUTPUT_BYTES_MAX, Object, Renderer, Template, jinja, prepare};

/// Answers, as far as they were asked for.
#[derive(Default)]
pub struct Probed {
    system_first: OnceLock<bool>,
    quietest_effort: OnceLock<&'static str>,
}

impl Renderer {
    /// Whether the system may speak only at the front, so that what it says later is merged into
    /// that (`_should_merge_inline_system`): with and without tools.
    pub(in crate::prompt) fn wants_system_first(&self) -> bool {
        *self.probed.system_first.get_or_init(|| {
            [false, true].into_iter().any(|has_tools| {
                let chosen = self.choose(None, has_tools);
                chosen.is_ok_and(|chosen| self.refuses_late_system(&chosen.template))
            })
        })
    }

    /// The try knows no functions of transformers, so a template that calls them fails it.
    fn refuses_late_system(&self, template: &Template) -> bool {
        let source = template.source.replace("strftime_now", "unknown_function");
        if source.contains("endgeneration") {
            return true;
        }
        let prepared = prepare(self.settings.dialect, &source);
        let message = |role: &str| {
            Json::Object(Object::from([
                ("role", role.into()),
                ("content", "t".into()),
            ]))
        };
        let messages = ["system", "user", "system", "user"].map(message);
        let context = Object::from([
            ("messages", Json::List(messages.into())),
            ("add_generation_prompt", Json::Bool(false)),
        ]);
        match self.environment.template_from_str(&prepared) {
            Ok(template) => jinja::render(&template, &context, 0, OUTPUT_BYTES_MAX).is_err(),
            Err(_) => true,
        }
    }

    /// "none" if the template heeds it, else "low": it may refuse "none", or take it for an
    /// effort. `render` makes a short prompt with an effort.
    pub(in crate::prompt) fn quietest_effort<T: PartialEq>(
        &self,
        render: impl Fn(&str) -> Option<T>,
    ) -> &'static str {
        self.probed.quietest_effort.get_or_init(|| {
            let Some(none) = render("none") else {
                return "low";
            };
            let same = |effort: &&str| render(effort).is_some_and(|prompt| prompt == none);
            let efforts = ["low", "medium", "high", "xhigh", "max"];
            match efforts.iter().any(same) {
                true => "low",
                false => "none",
            }
        })
    }
}
