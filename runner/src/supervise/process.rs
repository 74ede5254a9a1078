//! A worker's process, from the outside: started, told, listened to, ended. And from the inside: what makes it one.

use std::io::{self, BufReader, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use super::message::{self, Order, Report};
use super::policy::Death;

/// The program that a worker runs, which has to call [`worker`](super::worker).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    pub path: PathBuf,
    pub args: Vec<String>,
}

/// What is heard of a worker.
#[derive(Debug)]
pub enum Heard {
    Report(Report),
    /// What is no report; what comes after it can't be read.
    Nonsense(String),
    /// It is gone. Nothing comes after it.
    Died(Death),
}

/// A running worker. Dropping it ends it.
#[derive(Debug)]
pub struct Process {
    pid: u32,
    /// None once it is to end.
    orders: Option<Sender<Vec<u8>>>,
    child: Arc<Mutex<Child>>,
    /// Hears nothing; it closes once the process is gone.
    gone: Receiver<()>,
}

/// How long a worker may take to end when it is told to.
const FAREWELL: Duration = Duration::from_secs(5);

impl Process {
    /// Starts a worker; `hear` is called with what it tells, on a thread of its own.
    pub fn start(program: &Program, hear: impl Fn(Heard) + Send + 'static) -> io::Result<Process> {
        let (ours, theirs) = UnixStream::pair()?;
        let child = Command::new(&program.path)
            .args(&program.args)
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            // Standard output is the server's; what drivers print belongs to the log.
            .stdout(Stdio::from(io::stderr().as_fd().try_clone_to_owned()?))
            .spawn()?;
        let pid = child.id();
        let child = Arc::new(Mutex::new(child));
        let (orders, to_write) = mpsc::channel();
        let (alive, gone) = mpsc::channel();
        let reader = ours.try_clone()?;
        // Orders are written by a thread that a worker which does not read may hold up.
        spawn("worker orders", move || write(ours, to_write))?;
        let reaped = child.clone();
        spawn("worker reports", move || {
            // It lives as long as this thread.
            let _alive: Sender<()> = alive;
            listen(reader, &hear);
            hear(Heard::Died(reap(&reaped)));
        })?;
        Ok(Process {
            pid,
            orders: Some(orders),
            child,
            gone,
        })
    }

    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Tells the worker something. One that is gone doesn't hear it; that it is gone is heard of it.
    pub fn tell(&self, order: &Order) -> io::Result<()> {
        let frame = message::frame(order)?;
        if let Some(orders) = &self.orders {
            // The writer ends when the worker does.
            let _ = orders.send(frame);
        }
        Ok(())
    }

    /// Ends it at once, in whatever state it is.
    pub fn kill(&self) {
        // Whoever holds the lock waits for a process that is ending already.
        if let Ok(mut child) = self.child.try_lock() {
            // It may be gone.
            let _ = child.kill();
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // The end of its orders is what a worker ends by.
        self.orders = None;
        if self.gone.recv_timeout(FAREWELL) == Err(RecvTimeoutError::Timeout) {
            self.kill();
        }
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new().name(name.into()).spawn(work)?;
    Ok(())
}

fn write(mut to: UnixStream, orders: Receiver<Vec<u8>>) {
    for order in orders {
        if to.write_all(&order).is_err() {
            // The worker is gone.
            return;
        }
    }
    // Likewise.
    let _ = to.shutdown(Shutdown::Write);
}

fn listen(from: UnixStream, hear: &impl Fn(Heard)) {
    let mut from = BufReader::new(from);
    loop {
        match message::receive(&mut from) {
            Ok(Some(report)) => hear(Heard::Report(report)),
            Ok(None) => return,
            Err(error) => return hear(Heard::Nonsense(error.to_string())),
        }
    }
}

/// Waits for the end of a process that tells nothing more: one that has not ended by itself is killed.
fn reap(child: &Mutex<Child>) -> Death {
    let mut child = child.lock().unwrap_or_else(PoisonError::into_inner);
    // One that ends already keeps the status that it ends with.
    let _ = child.kill();
    match child.wait() {
        Ok(status) => death(status),
        Err(error) => Death::Nonsense(format!("its end can't be waited for: {error}")),
    }
}

fn death(status: ExitStatus) -> Death {
    match (status.signal(), status.code()) {
        (Some(signal), _) => Death::Signal(signal),
        (None, code) => Death::Exit(code.unwrap_or_default()),
    }
}

/// The other end of a worker's orders and reports, in the worker: its standard input.
pub fn connection() -> io::Result<UnixStream> {
    Ok(UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?))
}

/// Makes this process one that ends with the server and by its word only: the kernel kills it when the thread that started it
/// ends, and signals that are for the server, which people send to both, are the server's to obey.
pub fn belong_to_server() {
    // SAFETY: these calls only change how this process takes signals; they take no pointers.
    unsafe {
        #[cfg(target_os = "linux")]
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        libc::signal(libc::SIGINT, libc::SIG_IGN);
        libc::signal(libc::SIGTERM, libc::SIG_IGN);
    }
}
