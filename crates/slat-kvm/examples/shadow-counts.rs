//! What KVM counts of a small guest program, beside what the shadow pager does.
//!
//! `cargo run -p slat-kvm --example shadow-counts` runs it on this machine's KVM, or, where there is none
//! with shadow tables, prints the measurement that is kept. With `--tsv` it prints what KVM counted as it
//! is kept.

#[path = "../tests/replay/mod.rs"]
mod replay;

use replay::{Phases, backing, kept, replay};

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
fn measured() -> Result<(String, Phases), String> {
    let counted = slat_kvm::count().map_err(|why| why.to_string())?;
    match counted.paging {
        slat_kvm::Paging::Shadow(module) => Ok((module, counted.phases)),
        other => Err(format!("this KVM does not use shadow tables: {other:?}")),
    }
}

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
fn measured() -> Result<(String, Phases), String> {
    Err("KVM with shadow tables is known on Linux on x86-64 only".to_owned())
}

fn main() {
    let (source, phases) = measured().unwrap_or_else(|why| {
        eprintln!("{why}; this is the measurement that is kept");
        ("kvm_pvm on Linux 6.18, kept".to_owned(), kept())
    });
    if std::env::args().any(|argument| argument == "--tsv") {
        println!(
            "# What KVM ({source}) counts of the program of slat_kvm::script: phase, counter, change."
        );
        for (phase, counts) in &phases {
            for (counter, change) in counts {
                println!("{phase}\t{counter}\t{change}");
            }
        }
        return;
    }
    let Some(large) = backing(&phases) else {
        eprintln!("error: the host had large pages for some of the guest only; try again");
        std::process::exit(2);
    };
    println!("KVM: {source}; large guest pages backed by 2^{large} bytes");
    println!("{:<28}{:<18}{:>8}{:>8}", "phase", "counter", "KVM", "model");
    let mut differences = 0;
    for ((phase, kvm), (_, model)) in phases.iter().zip(&replay(large)) {
        for (counter, modelled) in model {
            let kvm = kvm.get(counter).copied().unwrap_or(0);
            if kvm != 0 || *modelled != 0 {
                let mark = if kvm == *modelled { "" } else { "  differs" };
                differences += usize::from(kvm != *modelled);
                println!("{phase:<28}{counter:<18}{kvm:>8}{modelled:>8}{mark}");
            }
        }
    }
    println!("{differences} counters differ");
}
