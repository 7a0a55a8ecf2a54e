//! Generated words: Envoy's external processing protocol, from `proto/`.

pub mod codec;

#[allow(
    missing_docs,
    clippy::all,
    clippy::allow_attributes_without_reason,
    reason = "generated; documented by Envoy"
)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/envoy.rs"));
}

pub use generated::envoy::config::core::v3 as core;
pub use generated::envoy::extensions::filters::http::ext_proc::v3 as filter;
pub use generated::envoy::service::ext_proc::v3 as ext_proc;
pub use generated::envoy::r#type::v3 as http;
