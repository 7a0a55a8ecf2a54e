//! What is watched, and what a cluster may lack of it.

use kube::api::ApiResource;

/// A kind of resource that is listed and watched, and nothing else.
#[derive(Debug, PartialEq, Eq)]
pub struct Resource {
    /// Its API group; empty for Kubernetes' own.
    pub group: &'static str,
    /// The version of it that we read.
    pub version: &'static str,
    /// Its kind.
    pub kind: &'static str,
    /// Its name in URLs.
    pub plural: &'static str,
    /// How it is read.
    pub what: What,
}

/// What a resource is to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// A server.
    Pod,
    /// Which pods are endpoints.
    Pool,
    /// How important a model is, and what serves it.
    Model,
    /// A priority by name.
    Objective,
    /// What serves a model.
    Rewrite,
}

/// The API group of the inference extension since 1.0.
pub const GROUP: &str = "inference.networking.k8s.io";
/// The one before, in which experiments still are.
pub const X_GROUP: &str = "inference.networking.x-k8s.io";
/// Where objectives and rewrites have moved to.
pub const LLM_D_GROUP: &str = "llm-d.ai";

/// Where one thing is said by two, those that come first are believed.
pub static WATCHED: [Resource; 8] = [
    Resource {
        group: "",
        version: "v1",
        kind: "Pod",
        plural: "pods",
        what: What::Pod,
    },
    custom(GROUP, "v1", What::Pool),
    custom(X_GROUP, "v1alpha2", What::Pool),
    custom(X_GROUP, "v1alpha2", What::Model),
    custom(LLM_D_GROUP, "v1alpha2", What::Objective),
    custom(X_GROUP, "v1alpha2", What::Objective),
    custom(LLM_D_GROUP, "v1alpha2", What::Rewrite),
    custom(X_GROUP, "v1alpha2", What::Rewrite),
];

const fn custom(group: &'static str, version: &'static str, what: What) -> Resource {
    let (kind, plural) = match what {
        What::Pod => ("Pod", "pods"),
        What::Pool => ("InferencePool", "inferencepools"),
        What::Model => ("InferenceModel", "inferencemodels"),
        What::Objective => ("InferenceObjective", "inferenceobjectives"),
        What::Rewrite => ("InferenceModelRewrite", "inferencemodelrewrites"),
    };
    Resource {
        group,
        version,
        kind,
        plural,
        what,
    }
}

impl Resource {
    /// As people name it: `inferencepools.inference.networking.k8s.io`.
    #[must_use]
    pub fn name(&self) -> String {
        match self.group {
            "" => self.plural.to_owned(),
            group => format!("{}.{group}", self.plural),
        }
    }

    /// As the client names it.
    #[must_use]
    pub fn api(&self) -> ApiResource {
        let api_version = match self.group {
            "" => self.version.to_owned(),
            group => format!("{group}/{}", self.version),
        };
        ApiResource {
            group: self.group.to_owned(),
            version: self.version.to_owned(),
            api_version,
            kind: self.kind.to_owned(),
            plural: self.plural.to_owned(),
        }
    }

    /// Without it there is no fleet; all else are rules, which may be missing.
    #[must_use]
    pub fn is_needed(&self) -> bool {
        matches!(self.what, What::Pod | What::Pool)
    }
}

/// Definitions of the custom ones, in their order. Fields that we read have upstream's names, types and
/// limits; status, which gateways write, is kept as it comes.
pub const CRDS: [&str; 7] = [
    include_str!("../../deploy/crds/inference.networking.k8s.io_inferencepools.yaml"),
    include_str!("../../deploy/crds/inference.networking.x-k8s.io_inferencepools.yaml"),
    include_str!("../../deploy/crds/inference.networking.x-k8s.io_inferencemodels.yaml"),
    include_str!("../../deploy/crds/llm-d.ai_inferenceobjectives.yaml"),
    include_str!("../../deploy/crds/inference.networking.x-k8s.io_inferenceobjectives.yaml"),
    include_str!("../../deploy/crds/llm-d.ai_inferencemodelrewrites.yaml"),
    include_str!("../../deploy/crds/inference.networking.x-k8s.io_inferencemodelrewrites.yaml"),
];
