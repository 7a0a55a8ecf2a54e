#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::path::Path;

use futures::StreamExt;
use futures::future::select_all;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsConnector;

use super::*;
use crate::config::Tls;
use crate::metrics::Metrics;

const PATIENCE: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_millis(50);

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap()
}

fn rules() -> DoorRules {
    DoorRules::new(10, super::Patience::First(PATIENCE))
}

/// A door that somebody stands behind and listens to each who comes in, to the end.
struct House {
    address: SocketAddr,
    metrics: Arc<Metrics>,
    seats: Seats,
    doorman: tokio::task::JoinHandle<()>,
}

impl House {
    async fn open(rules: DoorRules, certificates: Option<Certificates>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let metrics = Arc::<Metrics>::default();
        let mut door = Door::new(listener, rules, certificates, metrics.door("ext_proc"));
        let seats = door.seats();
        let doorman = tokio::spawn(async move {
            let mut guests = JoinSet::new();
            loop {
                let (mut guest, _) = door.enter().await;
                guests.spawn(async move {
                    let mut said = [0; 1024];
                    while guest.read(&mut said).await.is_ok_and(|bytes| bytes > 0) {
                        guest.write_all(b"heard").await.ok();
                    }
                });
            }
        });
        Self {
            address,
            metrics,
            seats,
            doorman,
        }
    }

    async fn come(&self) -> TcpStream {
        soon(TcpStream::connect(self.address)).await.unwrap()
    }

    fn refused(&self, reason: &str) -> bool {
        let line =
            format!("kvscout_connections_refused_total{{port=\"ext_proc\",reason=\"{reason}\"}} 1");
        self.metrics.handle().render().contains(&line)
    }
}

impl Drop for House {
    fn drop(&mut self) {
        self.doorman.abort();
    }
}

/// The other side hung up.
async fn hung_up_on(guest: &mut TcpStream) {
    let read = soon(guest.read(&mut [0; 64])).await;
    assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
}

#[tokio::test]
async fn who_says_nothing_is_hung_up_on() {
    let rules = DoorRules::new(10, super::Patience::First(SHORT));
    let house = House::open(rules, None).await;
    let mut guest = house.come().await;
    guest.write_all(b"PRI * HTTP/2.0").await.unwrap();
    let mut heard = [0; 5];
    soon(guest.read_exact(&mut heard)).await.unwrap();
    hung_up_on(&mut guest).await;
    assert!(house.refused("silent"));
    let mut guest = house.come().await;
    guest.write_all(&[7; PREFACE]).await.unwrap();
    soon(guest.read_exact(&mut heard)).await.unwrap();
    // It may think for as long as it likes from now on.
    let silent = tokio::time::timeout(4 * SHORT, guest.read(&mut heard)).await;
    assert!(silent.is_err(), "{silent:?}");
}

const PREFACE: usize = 24;

#[tokio::test]
async fn where_nobody_pings_no_silence_is_for_ever() {
    let rules = DoorRules::new(10, super::Patience::Always(SHORT));
    let house = House::open(rules, None).await;
    let mut guest = house.come().await;
    guest.write_all(&[7; PREFACE]).await.unwrap();
    let mut heard = [0; 5];
    soon(guest.read_exact(&mut heard)).await.unwrap();
    hung_up_on(&mut guest).await;
    assert!(house.refused("silent"));
}

#[tokio::test]
async fn with_every_seat_taken_the_next_is_hung_up_on_until_one_leaves() {
    let house = House::open(
        DoorRules {
            connections_max: 1,
            ..rules()
        },
        None,
    )
    .await;
    let mut first = house.come().await;
    first.write_all(b"hello").await.unwrap();
    let mut heard = [0; 5];
    soon(first.read_exact(&mut heard)).await.unwrap();
    assert_eq!(house.seats.taken(), 1);
    hung_up_on(&mut house.come().await).await;
    assert!(house.refused("full"));
    drop(first);
    while house.seats.taken() > 0 {
        tokio::task::yield_now().await;
    }
    let mut third = house.come().await;
    third.write_all(b"hello").await.unwrap();
    soon(third.read_exact(&mut heard)).await.unwrap();
}

/// An authority, with certificates that it signs in a folder.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    folder: TempDir,
}

/// A certificate and its key.
type Signed = (rcgen::Certificate, KeyPair);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let authority = Self {
            issuer: CertifiedIssuer::self_signed(params, key).unwrap(),
            folder: tempfile::tempdir().unwrap(),
        };
        let pem = authority.issuer.pem();
        authority.write("ca.crt", &pem);
        authority
    }

    fn signs(&self, name: &str) -> Signed {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        (params.signed_by(&key, &self.issuer).unwrap(), key)
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        Path::new(self.folder.path()).join(name)
    }

    /// What a port shows; and whose certificates it asks for, if it does.
    fn shows(&self, (certificate, key): &Signed, client_ca: bool) -> Tls {
        self.write("tls.crt", &certificate.pem());
        self.write("tls.key", &key.serialize_pem());
        Tls::Files {
            cert: self.path("tls.crt"),
            key: self.path("tls.key"),
            client_ca: client_ca.then(|| self.path("ca.crt")),
        }
    }

    /// A client that trusts it, with this certificate of its own.
    fn client(&self, own: Option<&Signed>) -> TlsConnector {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone()).unwrap();
        let builder = ClientConfig::builder().with_root_certificates(roots);
        let config = match own {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
                let chain = vec![certificate.der().clone()];
                builder.with_client_auth_cert(chain, key).unwrap()
            }
        };
        TlsConnector::from(Arc::new(config))
    }
}

/// What the door shows to a client that says a word and is heard.
async fn shown(house: &House, client: &TlsConnector) -> io::Result<CertificateDer<'static>> {
    let name = ServerName::try_from("kvscout").unwrap();
    let mut stream = soon(client.connect(name, house.come().await)).await?;
    stream.write_all(b"hello").await?;
    // With TLS 1.3 a client learns only now that it was refused.
    soon(stream.read_exact(&mut [0; 5])).await?;
    let connection: &ClientConnection = stream.get_ref().1;
    Ok(connection.peer_certificates().unwrap()[0]
        .clone()
        .into_owned())
}

#[tokio::test]
async fn a_handshake_that_never_ends_is_given_up() {
    let (certificates, _renewal) = tls::open(&Tls::SelfSigned, &["kvscout".to_owned()])
        .await
        .unwrap()
        .unwrap();
    let rules = DoorRules {
        handshake_max: SHORT,
        ..rules()
    };
    let house = House::open(rules, Some(certificates)).await;
    let mut guest = house.come().await;
    // A TLS record's head, of which nothing follows.
    guest.write_all(&[22, 3, 1, 2, 0]).await.unwrap();
    hung_up_on(&mut guest).await;
    assert!(house.refused("handshake_late"));
    assert_eq!(house.seats.taken(), 0);
}

/// Istio asks so where its DestinationRule says no `sni`, and every request would fail in silence.
#[tokio::test]
async fn a_name_that_no_host_can_have_is_told_from_other_failures() {
    let authority = Authority::new();
    let tls = authority.shows(&authority.signs("kvscout"), false);
    let (certificates, _renewal) = tls::open(&tls, &[]).await.unwrap().unwrap();
    let name = ServerName::try_from("outbound-9002--kvscout.llm").unwrap();
    for (bar, told) in [(b'|', true), (b'-', false)] {
        let client = authority.client(None).config().clone();
        let mut hello = Vec::new();
        let mut asks = ClientConnection::new(client, name.clone()).unwrap();
        asks.write_tls(&mut hello).unwrap();
        let from = hello.windows(8).position(|part| part == b"outbound");
        for byte in &mut hello[from.unwrap()..][..15] {
            if *byte == b'-' {
                *byte = bar;
            }
        }
        let (mut gateway, door) = tokio::io::duplex(1 << 16);
        gateway.write_all(&hello).await.unwrap();
        gateway.shutdown().await.unwrap();
        let error = soon(certificates.acceptor().accept(door)).await.err();
        let error = error.expect("nothing more comes");
        assert_eq!(names_no_host(&error), told, "{error}");
    }
}

#[tokio::test]
async fn a_renewed_certificate_is_shown_and_a_broken_one_is_not() {
    let authority = Authority::new();
    let [first, second] = [authority.signs("kvscout"), authority.signs("kvscout")];
    let tls = authority.shows(&first, false);
    let (certificates, renewal) = tls::open(&tls, &[]).await.unwrap().unwrap();
    let house = House::open(rules(), Some(certificates)).await;
    let renewal = renewal.every(Duration::from_millis(5));
    let renewing = tokio::spawn(renewal.run(house.metrics.clone()));
    let client = authority.client(None);
    assert_eq!(&shown(&house, &client).await.unwrap(), first.0.der());
    let reads = |outcome: &str, metrics: &Metrics| {
        let line = format!("kvscout_certificate_reads_total{{outcome=\"{outcome}\"}}");
        metrics.handle().render().contains(&line)
    };
    // Its key is still the first one's.
    authority.write("tls.crt", &second.0.pem());
    soon(async {
        while !reads("failed", &house.metrics) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    assert_eq!(&shown(&house, &client).await.unwrap(), first.0.der());
    authority.write("tls.key", &second.1.serialize_pem());
    // Whoever asks meanwhile is served all the same.
    soon(async { while &shown(&house, &client).await.unwrap() != second.0.der() {} }).await;
    assert!(reads("renewed", &house.metrics));
    renewing.abort();
}

#[tokio::test]
async fn with_an_authority_only_who_it_signed_gets_in() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let tls = authority.shows(&authority.signs("kvscout"), true);
    let (certificates, _renewal) = tls::open(&tls, &[]).await.unwrap().unwrap();
    let house = House::open(rules(), Some(certificates)).await;
    let gateway = authority.client(Some(&authority.signs("gateway")));
    assert!(shown(&house, &gateway).await.is_ok());
    let nobody = authority.client(None);
    assert!(shown(&house, &nobody).await.is_err());
    assert!(house.refused("handshake_failed"));
    let forged = authority.client(Some(&stranger.signs("gateway")));
    assert!(shown(&house, &forged).await.is_err());
}

#[tokio::test]
async fn what_is_wrong_with_a_certificate_is_said() {
    let authority = Authority::new();
    let tls = authority.shows(&authority.signs("kvscout"), false);
    let wrong = async |name: &str, text: &str| {
        authority.shows(&authority.signs("kvscout"), false);
        authority.write(name, text);
        let opened = tls::open(&tls, &[]).await;
        opened.map(|_| ()).unwrap_err().to_string()
    };
    let said = wrong("tls.crt", "").await;
    assert!(
        said.contains("tls.crt is not PEM with certificates: there is none"),
        "{said}"
    );
    let said = wrong("tls.key", "nothing").await;
    assert!(
        said.contains("tls.key is not PEM with a private key"),
        "{said}"
    );
    let other = KeyPair::generate().unwrap().serialize_pem();
    let said = wrong("tls.key", &other).await;
    assert!(said.contains("do cert and key belong together?"), "{said}");
    std::fs::remove_file(authority.path("tls.key")).unwrap();
    let said = tls::open(&tls, &[])
        .await
        .map(|_| ())
        .unwrap_err()
        .to_string();
    assert!(
        said.contains("tls.key") && said.contains("check the mount"),
        "{said}"
    );
}

#[tokio::test]
async fn who_comes_goes_where_fewest_are() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let metrics = Metrics::default().door("ext_proc");
    let door = Door::new(listener, rules(), None, metrics);
    let seats = door.seats();
    let (usher, entrances) = door.split(2);
    let ushering = tokio::spawn(usher.run());
    let mut entrances: Vec<_> = { entrances.into_iter() }
        .map(|entrance| Box::pin(entrance.connections()))
        .collect();
    let mut come = async || {
        let guest = soon(TcpStream::connect(address)).await.unwrap();
        let ways = entrances.iter_mut().map(StreamExt::next);
        let (connection, at, _) = soon(select_all(ways)).await;
        (guest, connection.unwrap().unwrap(), at)
    };
    let first = come().await;
    let second = come().await;
    assert_ne!(first.2, second.2);
    let third = come().await;
    drop(third);
    // One at each again.
    let fourth = come().await;
    let fifth = come().await;
    assert_ne!(fourth.2, fifth.2);
    assert_eq!(seats.taken(), 4);
    ushering.abort();
    // No usher brings more.
    let _ = ushering.await;
    assert!(soon(entrances[0].next()).await.is_none());
}
