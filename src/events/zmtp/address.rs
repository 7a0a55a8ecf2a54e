//! Where a ZeroMQ socket is bound, as text.

use std::path::PathBuf;

/// An address that nothing can be connected to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{address:?} is no address to connect to: {reason}")]
pub struct AddressError {
    /// As given.
    pub address: String,
    /// What is wrong with it.
    pub reason: &'static str,
}

/// Where a ZeroMQ socket is bound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// `tcp://host:port`. A name is resolved anew for each connection, so that it may move.
    Tcp {
        /// A name, an IPv4 or an IPv6 address (without brackets).
        host: String,
        /// Its port.
        port: u16,
    },
    /// `ipc://path`: a Unix socket.
    Ipc(PathBuf),
}

impl std::str::FromStr for Address {
    type Err = AddressError;

    fn from_str(address: &str) -> Result<Self, AddressError> {
        parse(address).map_err(|reason| AddressError {
            address: address.into(),
            reason,
        })
    }
}

fn parse(address: &str) -> Result<Address, &'static str> {
    if let Some(path) = address.strip_prefix("ipc://") {
        return Ok(Address::Ipc(path.into()));
    }
    let rest = address
        .strip_prefix("tcp://")
        .ok_or("write tcp://host:port or ipc://path")?;
    let (host, port) = rest.rsplit_once(':').ok_or("the port is missing")?;
    let port = match port.parse() {
        Ok(0) | Err(_) => return Err("the port must be a number from 1 to 65535"),
        Ok(port) => port,
    };
    let bracketed = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
    let host = match bracketed {
        Some(host) => host,
        None if host.contains(':') => return Err("put an IPv6 address into brackets"),
        None => host,
    };
    match host {
        "" => Err("the host is missing"),
        "*" | "0.0.0.0" | "::" => {
            Err("that is where a server binds; name the host that it runs on")
        }
        host => Ok(Address::Tcp {
            host: host.into(),
            port,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_or_explained() {
        let tcp = |host: &str, port| Address::Tcp {
            host: host.into(),
            port,
        };
        assert_eq!("tcp://pod-1:5557".parse(), Ok(tcp("pod-1", 5557)));
        assert_eq!("tcp://[::1]:5557".parse(), Ok(tcp("::1", 5557)));
        assert_eq!("ipc:///run/kv".parse(), Ok(Address::Ipc("/run/kv".into())));
        for wrong in [
            "tcp://*:5557",
            "tcp://::1:5557",
            "pod:5557",
            "tcp://pod",
            "tcp://pod:0",
        ] {
            assert!(wrong.parse::<Address>().is_err(), "{wrong}");
        }
    }
}
