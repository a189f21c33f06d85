//! Any bytes as what comes over the link of a migration, or out of a saved partition: a host that
//! receives them neither panics, nor loops, nor keeps anything of what it refuses.
#![no_main]

use std::io::{self, Read, Write};

use libfuzzer_sys::fuzz_target;
use slat_sim::host::migrate::{Arrival, announced, receive};
use slat_sim::host::{Host, HostSpec, Message, Owner, Policies};
use slat_sim::hypervisor::Hypervisor;
use slat_sim::preset::Processor;

/// The other host: says these bytes, and hears nothing.
struct Says<'a>(&'a [u8]);

impl Read for Says<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Write for Says<'_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        Ok(buffer.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fuzz_target!(|bytes: &[u8]| {
    // A host is dear to start: it is for bytes that begin with a message.
    let Ok(message) = Message::read(&mut &*bytes) else { return };
    let mut written = Vec::new();
    message.write(&mut written).expect("memory takes it");
    assert_eq!(Message::read(&mut written.as_slice()).expect("as written"), message);
    let mut host = Host::start(HostSpec {
        name: "fuzzed".to_owned(),
        processor: Processor::bundled("haswell").expect("bundled"),
        hypervisor: Hypervisor::bundled("kvm-3.0").expect("bundled"),
        nodes: vec![16 << 20],
        holes: Vec::new(),
        tables: None,
        parent: 0,
        parent_paging: false,
        policies: Policies::default(),
    })
    .expect("a host");
    let unused = host.memory.owned(Owner::Unused);
    let folder = tempfile::tempdir().expect("a folder");
    let mut link = Says(bytes);
    let Ok(hello) = announced(&mut link) else { return };
    match receive(&mut host, folder.path(), hello, &mut link, &mut ()) {
        // Nobody has recorded that anything is paused.
        Ok(Arrival::Here { .. }) => panic!("taken from nobody"),
        Ok(_) | Err(_) => assert_eq!(host.memory.owned(Owner::Unused), unused),
    }
});
