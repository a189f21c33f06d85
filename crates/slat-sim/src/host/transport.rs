//! The link between two hosts' processes on one machine: a Unix socket, or where there is none, TCP
//! on the loopback interface with its port in the file where the socket would be.

use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

/// How long one host waits for the other.
const PATIENCE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(5);

#[cfg(unix)]
mod socket {
    use std::io;
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::path::Path;

    /// Both ends read and write.
    pub type Link = UnixStream;
    pub(super) type Listener = UnixListener;

    pub(super) fn listen(path: &Path) -> io::Result<Listener> {
        UnixListener::bind(path).map_err(|error| named(error, path))
    }

    pub(super) fn connect(path: &Path) -> io::Result<Link> {
        UnixStream::connect(path).map_err(|error| named(error, path))
    }

    /// Says which path a socket cannot have.
    fn named(error: io::Error, path: &Path) -> io::Error {
        if error.kind() != io::ErrorKind::InvalidInput {
            return error;
        }
        let why = "is too long for a socket's address: name a shorter --directory";
        io::Error::new(error.kind(), format!("{} {why}", path.display()))
    }
}

#[cfg(not(unix))]
mod socket {
    use std::fs;
    use std::io;
    use std::net::{Ipv4Addr, TcpListener, TcpStream};
    use std::path::Path;

    /// Both ends read and write.
    pub type Link = TcpStream;
    pub(super) type Listener = TcpListener;

    pub(super) fn listen(path: &Path) -> io::Result<Listener> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        fs::write(path, listener.local_addr()?.port().to_string())?;
        Ok(listener)
    }

    pub(super) fn connect(path: &Path) -> io::Result<Link> {
        let port = fs::read_to_string(path)?;
        let port: u16 = port.trim().parse().map_err(|_| io::ErrorKind::NotFound)?;
        TcpStream::connect((Ipv4Addr::LOCALHOST, port))
    }
}

pub use socket::Link;

/// Where a host is reached.
#[derive(Debug)]
pub struct Door {
    listener: socket::Listener,
}

fn path(directory: &Path, host: &str) -> PathBuf {
    directory.join(format!("{host}.socket"))
}

impl Door {
    /// Opens this host's door in the directory that the hosts share.
    ///
    /// # Errors
    /// Of the socket.
    pub fn open(directory: &Path, host: &str) -> io::Result<Door> {
        let path = path(directory, host);
        // Left by a process that died.
        let _ = std::fs::remove_file(&path);
        let listener = socket::listen(&path)?;
        listener.set_nonblocking(true)?;
        Ok(Door { listener })
    }

    /// Waits for another host.
    ///
    /// # Errors
    /// Of the socket, and where nobody comes.
    pub fn wait(&self) -> io::Result<Link> {
        let until = Instant::now() + PATIENCE;
        loop {
            match self.listener.accept() {
                Ok((link, _)) => return ready(link),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
            if Instant::now() > until {
                return Err(io::ErrorKind::TimedOut.into());
            }
            thread::sleep(PAUSE);
        }
    }
}

/// Goes to another host's door.
///
/// # Errors
/// Of the socket, and where there is none for long.
pub fn reach(directory: &Path, host: &str) -> io::Result<Link> {
    let until = Instant::now() + PATIENCE;
    loop {
        match socket::connect(&path(directory, host)) {
            Ok(link) => return ready(link),
            Err(error) if error.kind() == io::ErrorKind::InvalidInput || Instant::now() > until => {
                return Err(error);
            }
            Err(_) => thread::sleep(PAUSE),
        }
    }
}

/// A host that does not answer for long is taken to be gone; who runs the partition then is for the
/// lock and the record to say, not for the clock.
fn ready(link: Link) -> io::Result<Link> {
    link.set_nonblocking(false)?;
    link.set_read_timeout(Some(PATIENCE))?;
    link.set_write_timeout(Some(PATIENCE))?;
    Ok(link)
}
