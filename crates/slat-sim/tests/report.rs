//! What reports say, and must not leave out.

mod guest;
mod made;

use slat_sim::compare::{Facts, Options, compare_with};
use slat_sim::preset::Processor;
use slat_sim::report::Report;
use slat_trace::{Access, Arch, Batch, Kind, Machine};

use self::guest::Guest;
use self::made::Made;

fn report(batch: Batch) -> Report {
    let processor = Processor::bundled("skylake-sp").expect("it is bundled");
    let machine = Machine { arch: Arch::X86_64, vcpus: 1, tables: true, memory: Some(0..1 << 30) };
    let mut made = Made { machine, batch: Some(batch) };
    let facts = |_: &_| Facts::RECORDED;
    let compared = compare_with(&mut made, &processor, &Options::default(), facts, |_| true);
    let compared = compared.expect("the made guest runs");
    Report {
        workload: "made".to_owned(),
        origin: "generated",
        notes: compared.notes,
        processor,
        hypervisor: None,
        cold_start: false,
        outcomes: compared.outcomes,
        timeline: compared.timeline,
    }
}

#[test]
fn a_row_that_cannot_be_right_says_so_in_every_form() {
    const MAPPED: u64 = 0x40_0000;
    let mut guest = Guest::new(4);
    guest.map(MAPPED, 0x1000_0000, 12);
    let load = |va| Access::new(Kind::Load, va, 8);
    let right = report(guest.batch([load(MAPPED)]));
    let wrong = report(guest.batch([load(MAPPED), load(MAPPED + 4096), load(MAPPED + 4096)]));
    for (report, counted) in [(&right, 0), (&wrong, 2)] {
        let rows = report.outcomes.len();
        assert!(report.outcomes.iter().all(|outcome| outcome.counts().unexplained == counted));
        let said = if counted == 0 { 0 } else { rows };
        for text in [report.text().replace('\n', " "), report.html()] {
            assert_eq!(text.matches("refuse 2 of the accesses").count(), said, "{text}");
        }
        assert_eq!(report.refused().count(), said);
        let header = Report::CSV_HEADER.trim_end().split(',');
        let column = header.clone().position(|name| name == "unexplained").expect("a column");
        for line in report.csv().lines() {
            assert_eq!(line.split(',').count(), header.clone().count(), "{line}");
            assert_eq!(line.split(',').nth(column), Some(counted.to_string().as_str()));
        }
    }
}
