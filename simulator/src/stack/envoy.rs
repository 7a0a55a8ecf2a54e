//! `deploy/envoy/envoy.yaml` with other addresses in it.

use std::net::SocketAddr;

use anyhow::{Context, ensure};

use super::ports::Ports;

/// The example as it is shipped.
pub const EXAMPLE: &str = include_str!("../../../deploy/envoy/envoy.yaml");

/// The example for these pods, this kvscout and these ports, on 127.0.0.1 alone.
///
/// # Errors
/// The example no longer has a place that must change.
pub fn configure(
    ports: &Ports,
    pods: &[SocketAddr],
    kvscout: SocketAddr,
) -> anyhow::Result<String> {
    let mut text = EXAMPLE.replace("0.0.0.0", "127.0.0.1");
    let moved = [
        (9901, ports.envoy_admin),
        (8080, ports.plain),
        (8081, ports.routed),
        (9002, kvscout.port()),
    ];
    // Two steps, since one port's new number may be another's old one.
    for (old, new) in moved {
        text = swap(
            &text,
            &format!("port_value: {old}}}"),
            &format!("port_value: new {new}}}"),
        )?;
    }
    let text = text.replace("port_value: new ", "port_value: ");
    let (before, rest) = text
        .split_once("              - {endpoint:")
        .context("the example has pods")?;
    let (_, after) = rest
        .split_once("          # That was all")
        .context("the example's pods end")?;
    let pods: String = pods.iter().map(|pod| pod_line(*pod)).collect();
    Ok(format!("{before}{pods}          # That was all{after}"))
}

fn pod_line(pod: SocketAddr) -> String {
    let (ip, port) = (pod.ip(), pod.port());
    format!(
        "              - {{endpoint: {{address: {{socket_address: {{address: {ip}, port_value: {port}}}}}}}}}\n"
    )
}

/// Replaces what stands in the text exactly once.
///
/// # Errors
/// It does not.
pub fn swap(text: &str, from: &str, to: &str) -> anyhow::Result<String> {
    let times = text.matches(from).count();
    ensure!(
        times == 1,
        "deploy/envoy/envoy.yaml has {from:?} {times} times, not once"
    );
    Ok(text.replace(from, to))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_may_take_each_others_places() {
        let ports = Ports {
            plain: 8081,
            routed: 8080,
            envoy_admin: 9002,
            ..Ports::FREE
        };
        let pods = [5001, 5002].map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
        let kvscout = SocketAddr::from(([127, 0, 0, 1], 9901));
        let text = configure(&ports, &pods, kvscout).expect("the example fits");
        for port in [8080, 8081, 9002, 9901, 5001, 5002] {
            assert_eq!(
                text.matches(&format!("port_value: {port}}}")).count(),
                1,
                "{port}: {text}"
            );
        }
        assert!(
            !text.contains("8101") && !text.contains("0.0.0.0"),
            "{text}"
        );
    }
}
