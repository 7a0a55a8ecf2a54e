//! HTTP clients of our own servers, which speak plain HTTP alone.

/// A client to be set up. kvscout's hub brings TLS into reqwest without a provider of ciphers,
/// and reqwest then asks for one whatever it is to speak.
pub fn client() -> reqwest::ClientBuilder {
    // An error says that the process has one already.
    let _installed = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().no_proxy()
}
