//! `make soak` with small numbers: the real `kvscout` process, simulated servers over real sockets.

mod harness;

use std::time::Duration;

use harness::stack;
use kvscout_sim::soak::Soak;

#[tokio::test(flavor = "multi_thread")]
async fn while_pods_and_files_come_and_go_no_request_fails_and_none_stays_open() {
    let soak = Soak {
        parts: stack::plan(env!("CARGO_BIN_EXE_kvscout"), 0).parts,
        lasts: Duration::from_secs(12),
        share: 0.5,
        churn: Duration::from_secs(1),
        look: Duration::from_secs(1),
    };
    let report = soak.run(|_| ()).await.expect("all comes back");
    assert_eq!(
        report.complaints(),
        Vec::<String>::new(),
        "{}",
        report.table()
    );
    let pods: Vec<u64> = report.samples.iter().map(|sample| sample.pods).collect();
    assert!(pods.contains(&5), "none came: {pods:?}");
}
