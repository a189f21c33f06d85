//! Live migration: a running partition moves to another host.
//!
//! Memory is copied while the guest runs, round by round, each round what was written in the one
//! before. Then the guest is paused, the rest is sent, and the partition changes hands. The
//! chapter "Hosts, partitions and migration" of the book states the hand-over and argues why at
//! no point two copies can run; in short:
//!
//! * The virtual machine has a directory that both hosts reach, as its disk would. In it are a
//!   **lock** and a **record** ([`ownership`]). Only who holds the lock runs the guest, or writes
//!   the record; a host that dies lets the lock go, and nothing else does.
//! * The record says who may run: a host that runs it, or anyone who has the complete state with a
//!   certain digest, once the source has paused for good or saved it to a file.
//! * Whoever is left after a crash takes the lock, reads the record, and knows.

use std::io::{Read, Write};
use std::time::Duration;

use slat::edit::Error;

use super::wire::{Message, WireError};
use super::{Host, HostError};

mod destination;
pub mod ownership;
mod source;

pub use destination::{Arrival, announced, receive};
pub use source::{Departure, Left, send};

use ownership::OwnershipError;

/// How a migration goes on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Plan {
    /// Steps that the guest runs while one message of pages is under way.
    pub steps_per_chunk: u64,
    /// Rounds after which the guest is paused whatever is left.
    pub most_rounds: u32,
    /// So few pages are left to the pause.
    pub pause_at: usize,
}

impl Default for Plan {
    fn default() -> Self {
        Plan { steps_per_chunk: 50, most_rounds: 8, pause_at: 64 }
    }
}

/// One round of copying.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Round {
    /// Pages that were sent.
    pub pages: u64,
    /// Of those, zeros, whose content was not sent.
    pub zeros: u64,
    /// Steps that the guest ran meanwhile.
    pub steps: u64,
}

/// Sees a migration go on.
pub trait Watch {
    /// A step of the protocol has been done.
    fn step(&mut self, name: &'static str) {
        let _ = name;
    }

    /// The guest is about to run.
    fn running(&mut self, host: &str, steps: u64) {
        let _ = (host, steps);
    }

    /// It has run up to this step.
    fn ran(&mut self, host: &str, steps: u64) {
        let _ = (host, steps);
    }
}

impl Watch for () {}

/// Why a migration could not be begun, or one host could not do its part.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// The host.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The record or the lock.
    #[error(transparent)]
    Ownership(#[from] OwnershipError),
    /// The link, or what came over it.
    #[error("the other host: {0}")]
    Link(#[from] WireError),
    /// The other host does not take the partition.
    #[error("the other host refuses: {0}")]
    Refused(String),
}

impl MigrateError {
    fn io(error: std::io::Error) -> MigrateError {
        MigrateError::Link(error.into())
    }
}

/// How long to wait before looking at a lock again.
const PAUSE: Duration = Duration::from_millis(2);
/// How often to look until the other host is taken to be alive.
const LOOKS: u32 = 250;

fn tables(host: &Host, name: &str) -> impl Fn(Error) -> MigrateError + use<> {
    let error = host.tables_error(name);
    move |inner| error(inner).into()
}

fn tell(link: &mut impl Write, message: &Message) -> Result<(), MigrateError> {
    message.write(link).and_then(|()| link.flush()).map_err(MigrateError::io)
}

/// Reads the next message; a refusal is an error.
fn hear(link: &mut impl Read) -> Result<Message, MigrateError> {
    match Message::read(link)? {
        Message::Refuse(text) => Err(MigrateError::Refused(text)),
        message => Ok(message),
    }
}

/// Reads the message that is due.
fn due(link: &mut impl Read, wanted: &Message) -> Result<(), MigrateError> {
    let got = hear(link)?;
    if got == *wanted {
        return Ok(());
    }
    Err(WireError::Unexpected { due: wanted.name(), got: got.name() }.into())
}

/// Runs a partition's guest where `watch` sees it.
///
/// # Errors
/// Of the guest.
pub fn run(
    host: &mut Host,
    name: &str,
    steps: u64,
    watch: &mut impl Watch,
) -> Result<(), HostError> {
    let before = host.partition(name)?.vcpu.steps;
    watch.running(&host.spec.name, before);
    let done = host.run(name, steps);
    let after = host.partition(name)?.vcpu.steps;
    watch.ran(&host.spec.name, after);
    done
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::thread;

    use super::super::tests::{HOSTS, host, partition};
    use super::*;
    use ownership::{Ownership, State};

    /// A link that breaks at its nth use, for both ends at once.
    struct Breaking {
        stream: UnixStream,
        left: u32,
    }

    impl Breaking {
        fn use_up(&mut self) -> std::io::Result<()> {
            match self.left.checked_sub(1) {
                Some(left) => {
                    self.left = left;
                    Ok(())
                }
                None => {
                    let _ = self.stream.shutdown(std::net::Shutdown::Both);
                    Err(std::io::ErrorKind::ConnectionReset.into())
                }
            }
        }
    }

    impl Read for Breaking {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            self.use_up()?;
            self.stream.read(buffer)
        }
    }

    impl Write for Breaking {
        fn write(&mut self, buffer: &[u8]) -> std::io::Result<usize> {
            self.use_up()?;
            self.stream.write(buffer)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            self.stream.flush()
        }
    }

    struct Moved {
        source: (Host, Departure),
        destination: (Host, Arrival),
    }

    fn migrate(
        folder: &std::path::Path,
        from: (&str, &str),
        to: (&str, &str),
        breaks_after: u32,
    ) -> Moved {
        let mut one = host(from.0, from.1, &[32 << 20]);
        one.spec.name = "one".to_owned();
        one.power_on(&partition("vm", 8 << 20)).unwrap();
        one.run("vm", 1_000).unwrap();
        let (here, there) = UnixStream::pair().unwrap();
        let mut ownership = Ownership::open(folder, "vm").unwrap();
        ownership.begin("one").unwrap();
        let mut two = host(to.0, to.1, &[32 << 20]);
        two.spec.name = "two".to_owned();
        thread::scope(|scope| {
            let receiving = scope.spawn(move || {
                let mut there = there;
                let hello = announced(&mut there);
                let arrival = match hello {
                    Ok(hello) => receive(&mut two, folder, hello, &mut there, &mut ()).unwrap(),
                    Err(why) => Arrival::StayedThere { why: why.into() },
                };
                (two, arrival)
            });
            let mut link = Breaking { stream: here, left: breaks_after };
            let departure = send(&mut one, &mut ownership, &mut link, &Plan::default(), &mut ());
            drop(link);
            let destination = receiving.join().unwrap();
            if let Departure::Kept { .. } = departure {
                assert!(ownership.holds());
            }
            Moved { source: (one, departure), destination }
        })
    }

    /// What the same guest leaves after as many steps on a host of its own.
    fn alone(steps: u64) -> crate::host::Digest {
        let mut host = host("westmere", "kvm-3.0", &[32 << 20]);
        host.power_on(&partition("vm", 8 << 20)).unwrap();
        host.run("vm", steps).unwrap();
        host.partition("vm").unwrap().digest(&host.memory)
    }

    #[test]
    fn a_partition_moves_between_hosts_of_all_means() {
        let mut steps = None;
        for (index, from) in HOSTS.into_iter().enumerate() {
            for to in HOSTS.into_iter().skip(index % 3).step_by(3) {
                let folder = tempfile::tempdir().unwrap();
                let Moved { source, destination } = migrate(folder.path(), from, to, u32::MAX);
                let Departure::HandedOver { rounds, digest, confirmed: true, left } = source.1
                else {
                    panic!("{from:?} to {to:?}: {:?}", source.1);
                };
                assert!(source.0.partition("vm").is_err(), "it is gone from here");
                let (mut two, arrival) = destination;
                let Arrival::Here { digest: arrived, translations: true, window, .. } = arrival
                else {
                    panic!("{from:?} to {to:?}: {arrival:?}");
                };
                assert_eq!(arrived, digest);
                assert_eq!(left.window.unwrap().0, window.unwrap().0, "the same guest-physical");
                assert!(rounds.len() > 1 && rounds[0].pages == 2048, "{rounds:?}");
                assert_eq!(rounds.last().unwrap().steps, 0, "paused in the last");
                two.run("vm", 2_000).unwrap();
                let vm = two.partition("vm").unwrap();
                let now = (vm.vcpu.steps, vm.digest(&two.memory));
                // How many steps it ran during the rounds depends on the pages that they had.
                let (at, reference) = *steps.get_or_insert_with(|| (now.0, alone(now.0)));
                let reference = if at == now.0 { reference } else { alone(now.0) };
                assert_eq!(now.1, reference, "{from:?} to {to:?}");
            }
        }
    }

    #[test]
    fn arm_partitions_move_between_arm_hosts() {
        let (from, to) = (("cortex-a57", "kvm-3.11"), ("neoverse-n1", "kvm-3.11"));
        move_and_run(from, to, "neoverse-v1");
        // Not to a host of another architecture: the source keeps it.
        for to in [("haswell", "kvm-3.0"), ("cortex-a15", "kvm-3.11")] {
            let folder = tempfile::tempdir().unwrap();
            let Moved { source, destination } = migrate(folder.path(), from, to, u32::MAX);
            let Departure::Kept { why } = source.1 else { panic!("{:?}", source.1) };
            assert!(why.to_string().contains("architecture"), "{why}");
            assert!(matches!(destination.1, Arrival::StayedThere { .. }));
        }
    }

    /// ARMv7's own tables, in both stages.
    #[test]
    fn armv7_partitions_move() {
        let a15 = ("cortex-a15", "kvm-3.11");
        move_and_run(a15, a15, "cortex-a15");
    }

    /// Moves a partition of an Arm host to another and runs it on, beside one that stays on a third.
    fn move_and_run(from: (&str, &str), to: (&str, &str), third: &str) {
        let folder = tempfile::tempdir().unwrap();
        let Moved { source, destination } = migrate(folder.path(), from, to, u32::MAX);
        assert!(matches!(source.1, Departure::HandedOver { confirmed: true, .. }));
        let (mut two, arrival) = destination;
        assert!(matches!(arrival, Arrival::Here { translations: true, .. }), "{arrival:?}");
        two.run("vm", 500).unwrap();
        let moved = two.partition("vm").unwrap();
        let mut alone = host(third, "kvm-3.11", &[32 << 20]);
        alone.power_on(&partition("vm", 8 << 20)).unwrap();
        alone.run("vm", moved.vcpu.steps).unwrap();
        let stayed = alone.partition("vm").unwrap();
        assert_eq!(moved.digest(&two.memory), stayed.digest(&alone.memory));
    }

    #[test]
    fn holes_in_the_guests_memory_move_too() {
        let folder = tempfile::tempdir().unwrap();
        let mut one = host("nehalem", "kvm-3.0", &[32 << 20]);
        let spec = super::super::PartitionSpec {
            holes: vec![(9 << 20, 4096), (10 << 20, 1 << 20)],
            ..partition("vm", 12 << 20)
        };
        one.power_on(&spec).unwrap();
        one.run("vm", 500).unwrap();
        let ranges = one.partition("vm").unwrap().ranges.clone();
        let (mut here, mut there) = UnixStream::pair().unwrap();
        let mut ownership = Ownership::open(folder.path(), "vm").unwrap();
        ownership.begin("one").unwrap();
        let mut two = host("core-2", "kvm-3.0", &[32 << 20]);
        thread::scope(|scope| {
            let folder = folder.path();
            let receiving = scope.spawn(move || {
                let hello = announced(&mut there).unwrap();
                let arrival = receive(&mut two, folder, hello, &mut there, &mut ()).unwrap();
                assert!(matches!(arrival, Arrival::Here { .. }), "{arrival:?}");
                (two, arrival)
            });
            let plan = Plan { most_rounds: 2, ..Plan::default() };
            let _ = send(&mut one, &mut ownership, &mut here, &plan, &mut ());
            let (mut two, _arrival) = receiving.join().unwrap();
            two.run("vm", 500).unwrap();
            let vm = two.partition("vm").unwrap();
            assert_eq!(vm.ranges, ranges);
            assert!(vm.locate(9 << 20).is_none() && vm.locate((9 << 20) + 4096).is_some());
        });
    }

    #[test]
    fn a_link_that_breaks_leaves_exactly_one() {
        let (from, to) = (("haswell", "kvm-3.0"), ("core-2", "kvm-3.0"));
        let (mut kept, mut moved) = (0, 0);
        // The first round has some forty messages; then every use up to the end and beyond.
        for breaks_after in (0..30).step_by(15).chain(35..100) {
            let folder = tempfile::tempdir().unwrap();
            let Moved { source, destination } = migrate(folder.path(), from, to, breaks_after);
            let here = source.0.partition("vm").is_ok();
            let there = destination.0.partition("vm").is_ok();
            assert!(here != there, "{breaks_after}: {:?}, {:?}", source.1, destination.1);
            let state = Ownership::open(folder.path(), "vm").unwrap().read().unwrap().unwrap();
            let (mut host, name) = if here { (source.0, "one") } else { (destination.0, "two") };
            assert_eq!(state.state, State::Running { host: name.to_owned() }, "{breaks_after}");
            assert_eq!(here, matches!(source.1, Departure::Kept { .. }));
            assert_eq!(there, matches!(destination.1, Arrival::Here { .. }));
            *(if here { &mut kept } else { &mut moved }) += 1;
            host.run("vm", 100).unwrap();
            let vm = host.partition("vm").unwrap();
            let steps = vm.vcpu.steps;
            if breaks_after % 5 == 0 {
                assert_eq!(vm.digest(&host.memory), alone(steps), "{breaks_after}");
            }
        }
        assert!(kept > 5 && moved > 5, "{kept} kept, {moved} moved");
    }

    /// Puts a directory where the record is, once the guest is paused.
    struct Spoils<'a>(&'a std::path::Path);

    impl Watch for Spoils<'_> {
        fn step(&mut self, name: &'static str) {
            if name == "source: recorded that it is paused" {
                std::fs::remove_file(self.0).unwrap();
                std::fs::create_dir(self.0).unwrap();
            }
        }
    }

    #[test]
    fn where_the_record_cannot_be_read_nobody_runs_it_and_nothing_is_lost() {
        let folder = tempfile::tempdir().unwrap();
        let record = folder.path().join("vm.record");
        let mut one = host("haswell", "kvm-3.0", &[32 << 20]);
        one.power_on(&partition("vm", 8 << 20)).unwrap();
        one.run("vm", 500).unwrap();
        let mut ownership = Ownership::open(folder.path(), "vm").unwrap();
        ownership.begin("test").unwrap();
        let digest = one.partition("vm").unwrap().digest(&one.memory);
        let mut depart = |one: &mut Host, watch: &mut Spoils<'_>| {
            let (here, there) = UnixStream::pair().unwrap();
            thread::scope(|scope| {
                // Accepts, hears all, and goes away.
                scope.spawn(move || {
                    let mut there = there;
                    if announced(&mut there).is_ok() {
                        tell(&mut there, &Message::Accept).unwrap();
                        while !matches!(Message::read(&mut there), Ok(Message::Last(_)) | Err(_)) {}
                    }
                });
                let (mut here, plan) = (here, Plan { steps_per_chunk: 0, ..Plan::default() });
                send(one, &mut ownership, &mut here, &plan, watch)
            })
        };
        let departure = depart(&mut one, &mut Spoils(&record));
        assert!(matches!(departure, Departure::Suspended { .. }), "{departure:?}");
        // Before it is paused there is nothing to know: it goes on.
        let departure = depart(&mut one, &mut Spoils(&record));
        assert!(matches!(departure, Departure::Kept { .. }), "{departure:?}");
        assert!(ownership.holds(), "nobody else can take it");
        assert_eq!(one.partition("vm").unwrap().digest(&one.memory), digest);
    }

    #[test]
    fn a_destination_that_lies_gets_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let mut one = host("haswell", "kvm-3.0", &[32 << 20]);
        one.power_on(&partition("vm", 8 << 20)).unwrap();
        let (mut here, mut there) = UnixStream::pair().unwrap();
        let mut ownership = Ownership::open(folder.path(), "vm").unwrap();
        ownership.begin("test").unwrap();
        thread::scope(|scope| {
            scope.spawn(move || {
                announced(&mut there).unwrap();
                tell(&mut there, &Message::Accept).unwrap();
                while !matches!(Message::read(&mut there).unwrap(), Message::Last(_)) {}
                tell(&mut there, &Message::Ready).unwrap();
                assert_eq!(Message::read(&mut there).unwrap(), Message::Go);
                tell(&mut there, &Message::Running).unwrap();
            });
            let departure = send(&mut one, &mut ownership, &mut here, &Plan::default(), &mut ());
            assert!(matches!(departure, Departure::Kept { .. }), "{departure:?}");
        });
        assert!(ownership.holds());
        one.run("vm", 100).unwrap();
    }

    #[test]
    fn a_destination_without_memory_refuses_and_the_source_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        let mut one = host("haswell", "kvm-3.0", &[32 << 20]);
        one.power_on(&partition("vm", 16 << 20)).unwrap();
        let (mut here, mut there) = UnixStream::pair().unwrap();
        let mut ownership = Ownership::open(folder.path(), "vm").unwrap();
        ownership.begin("one").unwrap();
        let mut two = host("nehalem", "kvm-3.0", &[8 << 20]);
        thread::scope(|scope| {
            let folder = folder.path();
            scope.spawn(move || {
                let hello = announced(&mut there).unwrap();
                let arrival = receive(&mut two, folder, hello, &mut there, &mut ()).unwrap();
                assert!(matches!(arrival, Arrival::StayedThere { .. }), "{arrival:?}");
            });
            let departure = send(&mut one, &mut ownership, &mut here, &Plan::default(), &mut ());
            let Departure::Kept { why } = departure else { panic!("{departure:?}") };
            assert!(why.to_string().contains("16 MiB"), "{why}");
        });
        one.run("vm", 100).unwrap();
    }
}
