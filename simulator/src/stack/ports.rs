//! Ports that people choose, and whether they can be had.

use std::net::{SocketAddr, TcpListener};

use anyhow::bail;

/// Where the stack listens on this machine; port 0 takes any free one. Pods always do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::Args)]
pub struct Ports {
    /// Envoy's listener that balances by least request
    #[arg(long = "plain-port", value_name = "PORT", default_value_t = 8080)]
    pub plain: u16,
    /// Envoy's listener that kvscout routes
    #[arg(long = "routed-port", value_name = "PORT", default_value_t = 8081)]
    pub routed: u16,
    /// Envoy's admin page
    #[arg(long = "envoy-admin-port", value_name = "PORT", default_value_t = 9901)]
    pub envoy_admin: u16,
    /// Where Envoy asks kvscout
    #[arg(long = "ext-proc-port", value_name = "PORT", default_value_t = 9002)]
    pub ext_proc: u16,
    /// kvscout's health service
    #[arg(long = "health-port", value_name = "PORT", default_value_t = 9003)]
    pub health: u16,
    /// kvscout's /metrics
    #[arg(long = "admin-port", value_name = "PORT", default_value_t = 9090)]
    pub admin: u16,
}

impl Ports {
    /// Any free ones: for tests.
    pub const FREE: Self = Self {
        plain: 0,
        routed: 0,
        envoy_admin: 0,
        ext_proc: 0,
        health: 0,
        admin: 0,
    };

    /// Names every port that is not to be had, before anything is started.
    ///
    /// # Errors
    /// One line for each: port, purpose and the flag that moves it.
    pub fn check(&self) -> anyhow::Result<()> {
        let mut complaints = Vec::new();
        let mut held = Vec::new();
        for (port, purpose, flag) in self.purposes() {
            // Held until all are checked, so that one port for two purposes is noticed.
            match TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], port))) {
                Ok(listener) => held.push(listener),
                Err(error) => complaints.push(format!(
                    "port {port}, for {purpose}, cannot be had: {error}; choose another with {flag}"
                )),
            }
        }
        if !complaints.is_empty() {
            bail!("{}", complaints.join("\n"));
        }
        Ok(())
    }

    fn purposes(&self) -> [(u16, &'static str, &'static str); 6] {
        [
            (self.plain, "Envoy's plain listener", "--plain-port"),
            (
                self.routed,
                "Envoy's inference-routed listener",
                "--routed-port",
            ),
            (self.envoy_admin, "Envoy's admin page", "--envoy-admin-port"),
            (self.ext_proc, "kvscout's ext_proc", "--ext-proc-port"),
            (self.health, "kvscout's health service", "--health-port"),
            (self.admin, "kvscout's /metrics", "--admin-port"),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_is_named_with_its_purpose_and_flag() {
        let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = taken.local_addr().expect("bound").port();
        let ports = Ports {
            routed: port,
            admin: port,
            ..Ports::FREE
        };
        let error = ports.check().expect_err("it is taken").to_string();
        let lines: Vec<&str> = error.lines().collect();
        assert_eq!(lines.len(), 2, "{error}");
        for part in [
            &format!("port {port}"),
            "inference-routed listener",
            "--routed-port",
        ] {
            assert!(lines[0].contains(part), "{part}: {error}");
        }
        drop(taken);
        assert!(ports.check().is_err(), "one port for two purposes");
        assert!(Ports::FREE.check().is_ok());
    }
}
