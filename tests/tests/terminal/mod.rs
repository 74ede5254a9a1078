//! A command on a pseudo-terminal, typed to and read from as a person would.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

pub const ENTER: &str = "\r";
pub const ALT_ENTER: &str = "\x1b\r";
pub const CTRL_C: &str = "\x03";
pub const CTRL_D: &str = "\x04";
pub const UP: &str = "\x1b[A";

/// What the line editor writes when it begins to read.
const READS: &str = "\x1b[?2004h";
/// And when a line is complete.
pub const STOPS_READING: &str = "\x1b[?2004l";

/// A test that waits longer has failed.
const PATIENCE: Duration = Duration::from_secs(120);

/// A running command and its terminal; both end with it.
pub struct Terminal {
    keyboard: File,
    screen: Receiver<Vec<u8>>,
    child: Child,
    /// What came and was not returned yet.
    unread: Vec<u8>,
}

impl Terminal {
    /// Starts a command on a terminal of its own.
    pub fn start(command: Command) -> Terminal {
        Terminal::with(command, None)
    }

    /// The same with standard output in a file.
    pub fn start_with_output(command: Command, output: File) -> Terminal {
        Terminal::with(command, Some(output))
    }

    fn with(mut command: Command, output: Option<File>) -> Terminal {
        let (ours, theirs) = open();
        let stdio = || Stdio::from(theirs.try_clone().expect("descriptors are left"));
        command.stdin(stdio()).stderr(stdio());
        command.stdout(output.map_or_else(stdio, Stdio::from));
        // SAFETY: between fork and exec only two system calls are made, which are async-signal-safe.
        unsafe {
            command.pre_exec(|| {
                // The terminal becomes the one that Ctrl-C on it interrupts, and that /dev/tty names.
                if libc::setsid() < 0 || libc::ioctl(0, libc::TIOCSCTTY, 0) < 0 {
                    return Err(std::io::Error::last_os_error());
                }
                Ok(())
            });
        }
        let child = command.spawn().expect("the command was built");
        // Else the terminal would outlive the command.
        drop((command, theirs));
        let keyboard = File::from(ours);
        let mut reader = keyboard.try_clone().expect("descriptors are left");
        let (send, screen) = channel();
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            // The read fails once nobody has the terminal open.
            while let Ok(n @ 1..) = reader.read(&mut bytes) {
                if send.send(bytes[..n].to_vec()).is_err() {
                    return;
                }
            }
        });
        Terminal {
            keyboard,
            screen,
            child,
            unread: Vec::new(),
        }
    }

    /// Waits for `text`; everything up to it, itself included.
    pub fn expect(&mut self, text: &str) -> String {
        let start = Instant::now();
        loop {
            let found = self
                .unread
                .windows(text.len())
                .position(|w| w == text.as_bytes());
            if let Some(at) = found {
                let rest = self.unread.split_off(at + text.len());
                let seen = std::mem::replace(&mut self.unread, rest);
                return String::from_utf8_lossy(&seen).into_owned();
            }
            match self
                .screen
                .recv_timeout(PATIENCE.saturating_sub(start.elapsed()))
            {
                Ok(bytes) => self.unread.extend(bytes),
                Err(e) => {
                    let why = match e {
                        RecvTimeoutError::Timeout => "in time",
                        RecvTimeoutError::Disconnected => "before the command ended",
                    };
                    let seen = String::from_utf8_lossy(&self.unread);
                    panic!("{text:?} didn't come {why}: {seen:?}");
                }
            }
        }
    }

    /// Waits until the command reads a line; what it wrote before.
    pub fn prompt(&mut self) -> String {
        self.expect(READS)
    }

    pub fn type_text(&mut self, text: &str) {
        self.keyboard
            .write_all(text.as_bytes())
            .expect("the terminal is open");
    }

    /// Types a line and waits for the next prompt; what came in between, echo included.
    pub fn type_line(&mut self, text: &str) -> String {
        self.type_text(text);
        self.type_text(ENTER);
        self.prompt()
    }

    /// Waits until the command ends by itself; its exit code.
    pub fn end(mut self) -> i32 {
        let start = Instant::now();
        while start.elapsed() < PATIENCE {
            // Its output must have somewhere to go.
            let _ = self.screen.recv_timeout(Duration::from_millis(20));
            if let Some(status) = self.child.try_wait().expect("it is our child") {
                return status.code().expect("it ended by itself");
            }
        }
        panic!("the command doesn't end");
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A pseudo-terminal of 40 rows and 200 columns: our end and the command's.
fn open() -> (OwnedFd, OwnedFd) {
    let (mut ours, mut theirs) = (-1, -1);
    let size = libc::winsize {
        ws_row: 40,
        ws_col: 200,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: the pointers are to locals or null, as openpty allows; the descriptors that it opens have no other owner.
    unsafe {
        let result = libc::openpty(
            &mut ours,
            &mut theirs,
            std::ptr::null_mut(),
            std::ptr::null_mut(),
            &size,
        );
        assert_eq!(
            result,
            0,
            "no pseudo-terminal: {}",
            std::io::Error::last_os_error()
        );
        // The command must not inherit our end.
        libc::fcntl(ours, libc::F_SETFD, libc::FD_CLOEXEC);
        libc::fcntl(theirs, libc::F_SETFD, libc::FD_CLOEXEC);
        (OwnedFd::from_raw_fd(ours), OwnedFd::from_raw_fd(theirs))
    }
}
