//! Compiles `proto/` without `protoc`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    let root = ["envoy/service/ext_proc/v3/external_processor.proto"];
    let files = protox::compile(root, ["proto"])?;
    // The client is for tests, which play Envoy; the service is our own (`ext_proc/service.rs`). Bodies are
    // `Bytes`, to be passed on uncopied.
    tonic_prost_build::configure()
        .bytes(".envoy")
        .build_server(false)
        .codec_path("crate::proto::codec::Codec")
        .include_file("envoy.rs")
        .compile_fds(files)?;
    Ok(())
}
