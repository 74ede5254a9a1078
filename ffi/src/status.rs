//! How calls end: a status, and a text for each thread.

use std::cell::RefCell;
use std::ffi::{CString, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};

use runner::Error;

/// How a call ended. After anything but OK and END, `fastrun_last_error` tells what was wrong and what to do.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FastrunStatus {
    Ok = 0,
    /// There are no more updates.
    End = 1,
    /// The input is wrong: a file, an argument, a prompt that doesn't fit.
    UserError = 2,
    /// Valid input that this build or this machine can't run.
    Unsupported = 3,
    /// There is no room for the request now; try again later.
    Busy = 4,
    /// The library broke a promise of its own.
    Bug = 5,
    /// The GPU failed in the middle of its work: close the runner and open another, or end the process.
    Fault = 6,
}

thread_local! {
    static LAST_ERROR: RefCell<CString> = RefCell::default();
}

pub fn last_error() -> *const c_char {
    LAST_ERROR
        .try_with(|text| text.borrow().as_ptr())
        .unwrap_or(c"the thread is ending".as_ptr())
}

/// Runs a call, its errors and panics kept for [`last_error`].
pub fn guard(call: impl FnOnce() -> Result<FastrunStatus, Error>) -> FastrunStatus {
    // What a call that panicked left behind: locks are taken over as they are, and nothing else is shared.
    let error = match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(status)) => return status,
        Ok(Err(error)) => error,
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
            Error::Bug(format!("a panic: {}", text.unwrap_or("no message")))
        }
    };
    let text = error.to_string().replace('\0', "\u{fffd}");
    // A thread that is ending has nobody to read it.
    let _ = LAST_ERROR.try_with(|last| last.replace(CString::new(text).unwrap_or_default()));
    match error {
        Error::User(_) => FastrunStatus::UserError,
        Error::Unsupported(_) => FastrunStatus::Unsupported,
        Error::Busy(_) => FastrunStatus::Busy,
        Error::Bug(_) => FastrunStatus::Bug,
        Error::Fault(_) => FastrunStatus::Fault,
    }
}

/// Runs a call that can't tell of errors; `otherwise` where it panics.
pub fn quietly<T>(otherwise: T, call: impl FnOnce() -> T) -> T {
    catch_unwind(AssertUnwindSafe(call)).unwrap_or(otherwise)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::CStr;

    fn last() -> String {
        // SAFETY: it is this thread's text, and no call fails meanwhile.
        unsafe { CStr::from_ptr(last_error()) }
            .to_string_lossy()
            .into_owned()
    }

    #[test]
    fn a_panic_does_not_pass() {
        assert_eq!(guard(|| panic!("oh {}", "no")), FastrunStatus::Bug);
        assert!(last().contains("oh no"), "{}", last());
        assert_eq!(quietly(7, || panic!("again")), 7);
    }

    #[test]
    fn errors_are_per_thread() {
        assert_eq!(
            guard(|| Err(Error::Busy("in\0ner".into()))),
            FastrunStatus::Busy
        );
        let text = last();
        assert!(text.contains("in\u{fffd}ner"), "{text}");
        let other = std::thread::spawn(last).join().expect("it only reads");
        assert_eq!(other, "");
        assert_eq!(guard(|| Ok(FastrunStatus::Ok)), FastrunStatus::Ok);
        assert_eq!(last(), text, "a call that succeeds leaves it");
    }
}
