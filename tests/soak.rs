//! The soak of `make soak`, for a moment: that it still says nothing is wrong, and would say it.

mod harness;

use std::time::Duration;

use harness::stack;
use kvscout_sim::soak::Soak;

#[tokio::test(flavor = "multi_thread")]
async fn pods_adapters_vocabularies_and_certificates_come_and_go_and_no_request_notices() {
    let soak = Soak {
        parts: stack::parts(env!("CARGO_BIN_EXE_kvscout")),
        lasts: Duration::from_secs(24),
        share: 0.5,
        // Twelve of them: each kind twice.
        churn: Duration::from_millis(1_600),
        look: Duration::from_secs(5),
    };
    let report = soak.run(|_| ()).await.expect("it runs");
    assert_eq!(
        report.complaints(),
        Vec::<String>::new(),
        "{}",
        report.table()
    );
    assert!(report.requests > 100, "{}", report.requests);
}
