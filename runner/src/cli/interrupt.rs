//! Ctrl-C in a chat: it stops an answer; a second one, or one at the prompt, leaves.
//!
//! Only SIGINT is caught, and only in a chat. All other signals, and all other commands, keep what the system does by
//! default.

use std::io;
use std::sync::atomic::{AtomicU8, Ordering};

/// At the prompt: nothing to stop.
const PROMPT: u8 = 0;
const ANSWERING: u8 = 1;
/// An answer is to stop, and hasn't yet.
const STOPPING: u8 = 2;

static STATE: AtomicU8 = AtomicU8::new(PROMPT);

/// Catches Ctrl-C from now on.
pub fn catch() -> io::Result<()> {
    // SAFETY: the action is all zero but for the handler and the flags, which is a valid one with an empty mask. The
    // handler does nothing but what is safe in a signal handler: an atomic, write and _exit.
    let result = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_interrupt as extern "C" fn(libc::c_int) as libc::sighandler_t;
        action.sa_flags = libc::SA_RESTART;
        libc::sigaction(libc::SIGINT, &action, std::ptr::null_mut())
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// An answer begins.
pub fn answering() {
    STATE.store(ANSWERING, Ordering::Relaxed);
}

/// The answer has ended.
pub fn at_prompt() {
    STATE.store(PROMPT, Ordering::Relaxed);
}

/// Whether the answer is to stop.
pub fn requested() -> bool {
    STATE.load(Ordering::Relaxed) == STOPPING
}

extern "C" fn on_interrupt(_signal: libc::c_int) {
    let stop = STATE.compare_exchange(ANSWERING, STOPPING, Ordering::Relaxed, Ordering::Relaxed);
    if let Err(state) = stop {
        let code = if state == PROMPT { 0 } else { 130 };
        // SAFETY: both calls are async-signal-safe, and the buffer has the length that is given.
        unsafe {
            libc::write(libc::STDOUT_FILENO, c"\n".as_ptr().cast(), 1);
            libc::_exit(code);
        }
    }
}
