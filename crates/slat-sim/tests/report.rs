//! What reports say, and must not leave out.

mod guest;
mod made;

use slat_sim::compare::{Facts, Options, compare_with};
use slat_sim::preset::Processor;
use slat_sim::report::{Report, Unit};
use slat_trace::{Access, Arch, Batch, Kind, Machine};

use self::guest::Guest;
use self::made::Made;

fn report(batch: Batch) -> Report {
    report_on("skylake-sp", batch)
}

fn report_on(processor: &str, batch: Batch) -> Report {
    let processor = Processor::bundled(processor).expect("it is bundled");
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

/// A guest with many pages, each used some times.
fn busy(instructions: u64) -> Batch {
    let mut guest = Guest::new(4);
    for page in 0..4096u64 {
        guest.map(0x4000_0000 + page * 4096, 0x1000_0000 + page * 4096, 12);
    }
    let accesses = (0..20_000u64).map(|nth| {
        Access::new(Kind::Load, 0x4000_0000 + ((nth * 2_654_435_761) >> 7) % 4096 * 4096, 8)
    });
    let mut batch = guest.batch(accesses);
    batch.instructions = instructions;
    batch
}

#[test]
fn without_instructions_rows_and_advice_are_in_cycles_an_access() {
    let report = report(busy(0));
    let text = report.text();
    assert!(text.contains("in cycles an access"), "{text}");
    let ept = text.lines().find(|line| line.starts_with("ept ")).expect("a row");
    let value: f64 = ept.split_whitespace().nth(2).expect("a value").parse().expect("a number");
    assert!(value > 1.0, "{text}");
    let advice = report.advice();
    assert!(!advice.is_empty() && advice.iter().all(|one| one.unit == Unit::PerAccess));
    assert!(advice.iter().all(|one| one.predicted < one.from));
    assert!(report.html().contains("cycles/&#8203;access"));
    let json = report.json();
    assert_eq!(json["advice"][0]["unit"], "cycles-per-access");
    assert!(json["schemes"][1]["cycles_per_access"]["value"].as_f64().expect("a number") > 0.0);
    let header = Report::CSV_HEADER.trim_end().split(',').collect::<Vec<_>>();
    let column = header.iter().position(|name| *name == "cycles_per_access").expect("a column");
    for line in report.csv().lines() {
        assert_eq!(line.split(',').count(), header.len());
        assert!(line.split(',').nth(column).expect("it").parse::<f64>().is_ok(), "{line}");
    }
}

#[test]
fn what_the_processor_lacks_is_marked_in_every_form() {
    for (processor, real) in [
        ("nehalem", &["native", "shadow-trap", "shadow", "ept 4K", "ept 2M"][..]),
        ("vt-x-2005", &["native", "shadow-trap", "shadow"]),
        ("zen-3", &["native", "shadow-trap", "shadow", "npt 4K", "npt 2M", "npt 1G"]),
    ] {
        let report = report_on(processor, busy(20_000));
        let text = report.text();
        let rows: Vec<&str> = text
            .lines()
            .skip_while(|line| !line.trim_start().starts_with("page"))
            .skip(1)
            .take_while(|line| !line.starts_with('~'))
            .collect();
        let unmarked: Vec<String> = rows
            .iter()
            .filter(|row| !row.contains('~'))
            .map(|row| {
                let mut words = row.split_whitespace();
                let (name, page) = (words.next().unwrap(), words.next().unwrap());
                match name {
                    "ept" | "npt" => format!("{name} {page}"),
                    _ => name.to_owned(),
                }
            })
            .collect();
        assert_eq!(unmarked, real, "{processor}: {text}");
        assert!(rows.len() > real.len() && text.contains("this processor has no such"), "{text}");
        assert!(report.html().contains('~'));
        let json = report.json();
        let schemes = json["schemes"].as_array().expect("schemes");
        let lacking = schemes.iter().filter(|scheme| scheme["lacking"] == true).count();
        assert_eq!(schemes.len() - lacking, real.len(), "{processor}");
        assert_eq!(report.csv().lines().filter(|line| line.contains(",true,")).count(), lacking);
    }
    // The sentence is of the processor's own second stage.
    let zen = report_on("zen-3", busy(20_000));
    let npt = zen
        .schemes()
        .find(|outcome| outcome.scheme.name() == "npt" && outcome.host_shift == Some(21));
    let time = npt.and_then(|outcome| outcome.time).expect("it ran").value;
    assert!(zen.sentence().contains(&format!("{time:.2} times")), "{}", zen.sentence());
}

#[test]
fn what_is_behind_the_columns_is_in_text_and_page() {
    let report = report(busy(20_000));
    let cycles = report.cycles();
    assert!(cycles.contains("KiB of the guest's and") && cycles.contains("hidden or not"));
    // Shadow tables are walked without a nested dimension: there is nothing to leave out.
    for (name, apart) in [("native", false), ("shadow ", false), ("ept ", true)] {
        let part = cycles.split(name).nth(1).expect("a part");
        let line = part.lines().find(|line| line.contains("hidden or not")).expect("a line");
        assert_eq!(line.contains("without the nested dimension"), apart, "{name}: {line}");
    }
    let page = report.html();
    assert!(page.contains("<h2>Counts</h2>") && page.contains("hypervisor's KiB"));
    for text in [report.text(), page, report.json().to_string()] {
        assert!(text.contains("it does not react"), "{text}");
    }
}

#[test]
fn misses_over_time_begin_where_counting_does() {
    let processor = Processor::bundled("skylake-sp").expect("it is bundled");
    let machine = Machine { arch: Arch::X86_64, vcpus: 1, tables: true, memory: Some(0..1 << 30) };
    let mut made = Made { machine, batch: Some(busy(20_000)) };
    let facts = |_: &_| Facts::RECORDED;
    let options = Options { warm_up: 15_000, ..Options::default() };
    let compared = compare_with(&mut made, &processor, &options, facts, |_| true).expect("it runs");
    assert_eq!(compared.timeline.from(), 15_000);
    assert_eq!(compared.timeline.rates(0).len(), 1);
}
