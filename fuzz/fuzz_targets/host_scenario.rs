//! Any text as a scenario of `slat host`: no panic, and what is refused says where. Small ones are
//! played, in memory alone.
#![no_main]

use libfuzzer_sys::fuzz_target;
use slat_sim::host::Host;
use slat_sim::host::scenario::{Do, Scenario, ScenarioError};

/// Hosts up to this size are started, partitions up to this size and number too.
const SMALL: u64 = 64 << 20;

fuzz_target!(|text: &str| {
    let scenario = match Scenario::parse("fuzzed", text) {
        Ok(scenario) => scenario,
        Err(error) => {
            let words = error.to_string();
            assert!(words.contains("fuzzed"), "{words}");
            if let ScenarioError::Field { line, .. } = error {
                assert!((1..=text.lines().count() + 1).contains(&line), "{words}");
            }
            return;
        }
    };
    let Some(spec) = scenario.hosts.first() else { unreachable!("there is one at least") };
    if spec.nodes.iter().sum::<u64>() > SMALL || spec.tables.is_some_and(|bytes| bytes > SMALL) {
        return;
    }
    let Ok(mut host) = Host::start(spec.clone()) else { return };
    let unused = host.memory.pool().used();
    let mut started = Vec::new();
    for step in scenario.steps.iter().take(8) {
        match &step.what {
            Do::Start { spec, .. } if host.power_on(spec).is_ok() => started.push(spec.name.clone()),
            Do::Run { partition, steps } => {
                let _ = host.run(partition, (*steps).min(200));
            }
            Do::Follow { partition, address } => {
                let _ = host.follow(partition, *address);
            }
            Do::Stop { partition } if host.stop(partition).is_ok() => {
                started.retain(|name| name != partition);
            }
            Do::Balloon { partition, bytes } => {
                let _ = host.balloon(partition, (*bytes).min(1 << 20));
            }
            Do::Share => {
                let _ = host.share();
            }
            _ => {}
        }
    }
    for name in started {
        host.stop(&name).expect("it was started");
    }
    assert_eq!(host.memory.pool().used(), unused, "every table came back");
});
