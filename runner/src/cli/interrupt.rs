//! Ctrl-C while a chat's answer comes: it stops the answer; a second one ends the program.
//!
//! At the prompt the line editor reads Ctrl-C as a key. All other signals, and all other commands, keep what the system does
//! by default.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

/// An answer is to stop, and hasn't yet.
static STOPPING: AtomicBool = AtomicBool::new(false);

/// Catches Ctrl-C as long as it lives.
pub struct Catch {
    before: libc::sigaction,
}

impl Catch {
    /// # Errors
    /// The system's, which has none for this.
    pub fn new() -> io::Result<Catch> {
        STOPPING.store(false, Ordering::Relaxed);
        // SAFETY: the action is all zero but for the handler and the flags, which is a valid one with an empty mask; the
        // one before is written by the call. The handler does nothing but what is safe in a signal handler: an atomic,
        // write and _exit.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_interrupt as extern "C" fn(libc::c_int) as libc::sighandler_t;
            action.sa_flags = libc::SA_RESTART;
            let mut before: libc::sigaction = std::mem::zeroed();
            match libc::sigaction(libc::SIGINT, &action, &mut before) {
                0 => Ok(Catch { before }),
                _ => Err(io::Error::last_os_error()),
            }
        }
    }

    /// Whether Ctrl-C was pressed.
    pub fn requested(&self) -> bool {
        STOPPING.load(Ordering::Relaxed)
    }
}

impl Drop for Catch {
    fn drop(&mut self) {
        // SAFETY: the action is what the system said was in place before.
        unsafe { libc::sigaction(libc::SIGINT, &self.before, std::ptr::null_mut()) };
    }
}

extern "C" fn on_interrupt(_signal: libc::c_int) {
    if STOPPING.swap(true, Ordering::Relaxed) {
        // SAFETY: both calls are async-signal-safe, and the buffer has the length that is given.
        unsafe {
            libc::write(libc::STDOUT_FILENO, c"\n".as_ptr().cast(), 1);
            libc::_exit(130);
        }
    }
}
