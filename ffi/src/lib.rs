//! The runner's C interface. `include/fastrun.h` is generated from this file and [`status`]; a test compares them.
//!
//! Parameters are JSON ([`request`]), so that they can grow without a new ABI, and a misspelt one is an error that names it.
//! Results that an answer's every token has are plain values; all of a result is JSON again ([`update`]).

mod request;
mod status;
mod update;

use std::ffi::{CStr, CString, c_char};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use runner::Error;
use runner::Runner;
use runner::runner::{Canceller, Generation};
use runner::tokenizer::EncodeOptions;

pub use status::FastrunStatus;
use status::{guard, quietly};
use update::Current;

/// Number of this interface. It rises when a function changes or goes; functions and JSON fields may be added under the same
/// number.
pub const FASTRUN_ABI_VERSION: u32 = 1;

/// An opened bundle that serves requests. All functions but `fastrun_close` may be called with one runner by any number of
/// threads at a time; their requests run together.
pub struct FastrunRunner {
    runner: Runner,
    info: CString,
}

/// A request in progress. It keeps the model open. One thread at a time may read it; any may cancel it meanwhile.
pub struct FastrunGeneration {
    canceller: Canceller,
    reader: Mutex<Reader>,
}

struct Reader {
    generation: Generation,
    current: Current,
}

/// Version of the library: "0.1.0". The text is constant.
#[unsafe(no_mangle)]
pub extern "C" fn fastrun_version() -> *const c_char {
    const VERSION: &CStr =
        match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
            Ok(version) => version,
            Err(_) => panic!("a version has no NUL"),
        };
    VERSION.as_ptr()
}

/// FASTRUN_ABI_VERSION of the library, to compare with the header's.
#[unsafe(no_mangle)]
pub extern "C" fn fastrun_abi_version() -> u32 {
    FASTRUN_ABI_VERSION
}

/// What the calling thread's last failed call failed for; "" before the first. The text is valid until the thread's next
/// call that fails; it is per thread, so threads need no lock to read theirs.
#[unsafe(no_mangle)]
pub extern "C" fn fastrun_last_error() -> *const c_char {
    status::last_error()
}

/// Opens a bundle. `options` is NULL or a JSON object with any of
///
///   "device": "cpu" or "reference"        "threads": number; default: one for each physical core
///   "kv_memory": bytes of the KV cache    "queue": requests that may wait; default 1024
///   "prefix_cache": true or false         "spec": "ngram" or "ngram:N", to guess tokens ahead
///   "token_budget": prompt tokens of a step in which others decode
///   "verify": true, to check the weights' hashes first
///
/// The runner goes to `*runner`, for `fastrun_close`; NULL where it can't be opened.
///
/// # Safety
/// `path` is a NUL-terminated string, `options` too or NULL, and `runner` may be written to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fastrun_open(
    path: *const c_char,
    options: *const c_char,
    runner: *mut *mut FastrunRunner,
) -> FastrunStatus {
    guard(|| {
        // SAFETY: the caller's promises.
        let (path, options, out) = unsafe {
            (
                bytes(path, "path")?,
                optional_text(options, "options")?,
                output(runner, "runner")?,
            )
        };
        *out = std::ptr::null_mut();
        let options = request::options(options)?;
        let opened = Runner::open_with(os_path(path)?, &options)?;
        let info = c_string(update::model_json(opened.model()));
        *out = Box::into_raw(Box::new(FastrunRunner {
            runner: opened,
            info,
        }));
        Ok(FastrunStatus::Ok)
    })
}

/// Closes a runner; NULL: nothing. Its generations go on, and hold the model until they are freed.
///
/// # Safety
/// `runner` is NULL or from `fastrun_open`, is not closed yet, and no thread uses it now or later.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fastrun_close(runner: *mut FastrunRunner) {
    quietly((), || {
        if !runner.is_null() {
            // SAFETY: the caller's promise: it is the box that `fastrun_open` made.
            drop(unsafe { Box::from_raw(runner) });
        }
    });
}

/// What is known of the model, a JSON object: name, architecture, quantisation, parameters, layers, embedding, vocab, context,
/// trained_context, max_sequences, chat, root. The text is the runner's, until it is closed. NULL for NULL.
///
/// # Safety
/// `runner` is NULL or an open runner.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fastrun_model_info(runner: *const FastrunRunner) -> *const c_char {
    // SAFETY: the caller's promise.
    quietly(std::ptr::null(), || match unsafe { runner.as_ref() } {
        Some(runner) => runner.info.as_ptr(),
        None => std::ptr::null(),
    })
}

/// The engine in figures, a JSON object: gauges (running, waiting, kv_blocks_…) and counters (prompt_tokens, …). Up to
/// `capacity` bytes go to `out`, NUL-terminated; the length of all, without the NUL, goes to `*length`, so that a call with
/// capacity 0 tells it.
///
/// # Safety
/// `runner` is an open runner, `out` has room for `capacity` bytes, and `length` may be written to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fastrun_stats(
    runner: *const FastrunRunner,
    out: *mut c_char,
    capacity: usize,
    length: *mut usize,
) -> FastrunStatus {
    guard(|| {
        // SAFETY: the caller's promises.
        let (runner, length) = unsafe { (handle(runner, "runner")?, output(length, "length")?) };
        let json = update::stats_json(&runner.runner.stats());
        // SAFETY: the caller's promise.
        *length = unsafe { copy_text(json.as_bytes(), out, capacity) };
        Ok(FastrunStatus::Ok)
    })
}

/// Asks for an answer. `request` is a JSON object with one of
///
///   "prompt": text, continued as it is      "tokens": array of token ids
///   "messages": array of {"role", "content"}, through the model's chat template; with it "tools" and "template_variables"
///
/// and any of
///
///   "max_tokens": default: what the context holds            "n": answers; default 1
///   "temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05, "typical_p": 1      (the defaults)
///   "repeat_penalty": 1, "frequency_penalty": 0, "presence_penalty": 0, "repeat_last_n": 64 (-1: all)
///   "seed": default: another one each time      "stop": string, or array of strings      "ignore_eos": true or false
///   "logprobs": how many of the likeliest tokens to tell     "logit_bias": {"token id": number}
///   "grammar": {"json": {}}, {"json_schema": schema}, {"regex": text} or {"lark": text}
///   "timeout": seconds      "cache_salt": number: only requests of the same one share cached prefixes
///
/// The generation goes to `*generation`, for `fastrun_generation_free`; NULL where there is none. It returns when the engine
/// has taken the request.
///
/// # Safety
/// `runner` is an open runner, `request` a NUL-terminated string, and `generation` may be written to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fastrun_generate(
    runner: *const FastrunRunner,
    request: *const c_char,
    generation: *mut *mut FastrunGeneration,
) -> FastrunStatus {
    guard(|| {
        // SAFETY: the caller's promises.
        let (runner, request, out) = unsafe {
            (
                handle(runner, "runner")?,
                text(request, "request")?,
                output(generation, "generation")?,
            )
        };
        *out = std::ptr::null_mut();
        let started = runner.runner.generate(request::generate(request)?)?;
        *out = Box::into_raw(Box::new(FastrunGeneration {
            canceller: started.canceller(),
            reader: Mutex::new(Reader {
                generation: started,
                current: Current::default(),
            }),
        }));
        Ok(FastrunStatus::Ok)
    })
}

/// Waits for the next update, of which the functions below then tell: FASTRUN_STATUS_OK. FASTRUN_STATUS_END: there is none
/// after the last.
///
/// # Safety
/// `generation` is one that is not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fastrun_next(generation: *const FastrunGeneration) -> FastrunStatus {
    guard(|| {
        // SAFETY: the caller's promise.
        let generation = unsafe { handle(generation, "generation")? };
        let mut reader = generation.reader();
        Ok(match reader.generation.next() {
            Some(update) => {
                reader.current = Current::new(update);
                FastrunStatus::Ok
            }
            None => {
                reader.current = Current::default();
                FastrunStatus::End
            }
        })
    })
}

/// Text that the update adds to the answer: whole characters, UTF-8, NUL-terminated, maybe empty. It is valid until the next
/// `fastrun_next`.
///
/// # Safety
/// `generation` is NULL or one that is not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fastrun_text(generation: *const FastrunGeneration) -> *const c_char {
    // SAFETY: the caller's promise.
    unsafe { current(generation, c"".as_ptr(), |current| current.text()) }
}

/// Bytes of `fastrun_text`, for a model may write NUL.
///
/// # Safety
/// `generation` is NULL or one that is not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fastrun_text_length(generation: *const FastrunGeneration) -> usize {
    // SAFETY: the caller's promise.
    unsafe { current(generation, 0, |current| current.text_length()) }
}

/// Which of the request's answers the update is about: below its "n".
///
/// # Safety
/// `generation` is NULL or one that is not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fastrun_choice(generation: *const FastrunGeneration) -> u32 {
    // SAFETY: the caller's promise.
    unsafe { current(generation, 0, |current| current.choice()) }
}

/// NULL while the answer goes on, else why it ended: "stop", "length", "cancelled", "timeout" or "error". The text is
/// constant.
///
/// # Safety
/// `generation` is NULL or one that is not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fastrun_finish_reason(
    generation: *const FastrunGeneration,
) -> *const c_char {
    // SAFETY: the caller's promise.
    unsafe { current(generation, std::ptr::null(), |current| current.reason()) }
}

/// All of the update as a JSON object: choice; text and tokens (id, bytes and, where they were asked for, logprob and top), or
/// finish_reason, error, usage (prompt_tokens, completion_tokens, cached_tokens) and timings in seconds (first_token, total).
/// NULL before the first update and after the last. It is valid until the next `fastrun_next`.
///
/// # Safety
/// `generation` is NULL or one that is not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fastrun_update_json(
    generation: *const FastrunGeneration,
) -> *const c_char {
    // SAFETY: the caller's promise.
    unsafe { current(generation, std::ptr::null(), |current| current.json()) }
}

/// Ends a request soon: its updates up to now still come, then finish reason "cancelled". Any thread may call it, while
/// another is in `fastrun_next`.
///
/// # Safety
/// `generation` is NULL or one that is not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fastrun_cancel(generation: *const FastrunGeneration) {
    // SAFETY: the caller's promise.
    quietly((), || {
        if let Some(generation) = unsafe { generation.as_ref() } {
            generation.canceller.cancel();
        }
    });
}

/// Frees a generation, and cancels what has not ended of it; NULL: nothing.
///
/// # Safety
/// `generation` is NULL or from `fastrun_generate`, is not freed yet, and no thread uses it now or later.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fastrun_generation_free(generation: *mut FastrunGeneration) {
    quietly((), || {
        if !generation.is_null() {
            // SAFETY: the caller's promise: it is the box that `fastrun_generate` made.
            drop(unsafe { Box::from_raw(generation) });
        }
    });
}

/// The token ids of a text of `length` bytes of UTF-8. `parse_special`: text that spells a control token becomes it;
/// `add_special`: BOS and EOS are added where the model wants them. Up to `capacity` ids go to `ids`; the number of all goes
/// to `*count`, so that a call with capacity 0 tells it.
///
/// # Safety
/// `runner` is an open runner, `text` has `length` bytes, `ids` room for `capacity`, and `count` may be written to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fastrun_tokenize(
    runner: *const FastrunRunner,
    text: *const c_char,
    length: usize,
    parse_special: bool,
    add_special: bool,
    ids: *mut u32,
    capacity: usize,
    count: *mut usize,
) -> FastrunStatus {
    guard(|| {
        // SAFETY: the caller's promises.
        let (runner, text, count) = unsafe {
            (
                handle(runner, "runner")?,
                slice(text.cast::<u8>(), length, "text")?,
                output(count, "count")?,
            )
        };
        let text = utf8(text, "text")?;
        let options = EncodeOptions {
            parse_special,
            add_special,
        };
        let all = runner.runner.tokenizer().encode(text, options);
        // SAFETY: the caller's promise.
        unsafe { copy(&all, ids, capacity) };
        *count = all.len();
        Ok(FastrunStatus::Ok)
    })
}

/// The token ids that a request would feed to the model, by its "prompt", "tokens" or "messages"; as `fastrun_tokenize`.
///
/// # Safety
/// `runner` is an open runner, `input` a NUL-terminated string, `ids` has room for `capacity`, and `count` may be written to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fastrun_encode(
    runner: *const FastrunRunner,
    input: *const c_char,
    ids: *mut u32,
    capacity: usize,
    count: *mut usize,
) -> FastrunStatus {
    guard(|| {
        // SAFETY: the caller's promises.
        let (runner, input, count) = unsafe {
            (
                handle(runner, "runner")?,
                text(input, "input")?,
                output(count, "count")?,
            )
        };
        let all = runner.runner.encode(&request::input(input)?)?;
        // SAFETY: the caller's promise.
        unsafe { copy(&all, ids, capacity) };
        *count = all.len();
        Ok(FastrunStatus::Ok)
    })
}

/// The text of `count` tokens; `show_special`: with the names of control tokens. Up to `capacity` bytes go to `out`,
/// NUL-terminated; the length of all, without the NUL, goes to `*length`, so that a call with capacity 0 tells it.
///
/// # Safety
/// `runner` is an open runner, `ids` has `count` ids, `out` room for `capacity` bytes, and `length` may be written to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fastrun_detokenize(
    runner: *const FastrunRunner,
    ids: *const u32,
    count: usize,
    show_special: bool,
    out: *mut c_char,
    capacity: usize,
    length: *mut usize,
) -> FastrunStatus {
    guard(|| {
        // SAFETY: the caller's promises.
        let (runner, ids, length) = unsafe {
            (
                handle(runner, "runner")?,
                slice(ids, count, "ids")?,
                output(length, "length")?,
            )
        };
        let all = runner.runner.tokenizer().decode(ids, show_special)?;
        // SAFETY: the caller's promise.
        *length = unsafe { copy_text(all.as_bytes(), out, capacity) };
        Ok(FastrunStatus::Ok)
    })
}

/// What a text means, as a direction of length 1 (the mean of its hidden states) to compare with others by their dot product.
/// `input` is a JSON object with "prompt", "tokens" or "messages". Up to `capacity` values go to `out`; their number, which
/// is the model's "embedding", goes to `*count`.
///
/// # Safety
/// `runner` is an open runner, `input` a NUL-terminated string, `out` has room for `capacity`, and `count` may be written to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fastrun_embed(
    runner: *const FastrunRunner,
    input: *const c_char,
    out: *mut f32,
    capacity: usize,
    count: *mut usize,
) -> FastrunStatus {
    guard(|| {
        // SAFETY: the caller's promises.
        let (runner, input, count) = unsafe {
            (
                handle(runner, "runner")?,
                text(input, "input")?,
                output(count, "count")?,
            )
        };
        let all = runner.runner.embed(request::input(input)?)?.values;
        // SAFETY: the caller's promise.
        unsafe { copy(&all, out, capacity) };
        *count = all.len();
        Ok(FastrunStatus::Ok)
    })
}

impl FastrunGeneration {
    /// What a panic left behind is a whole update all the same.
    fn reader(&self) -> MutexGuard<'_, Reader> {
        self.reader.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads the present update; `none` where there is no generation.
///
/// # Safety
/// `generation` is NULL or one that is not freed.
unsafe fn current<T: Copy>(
    generation: *const FastrunGeneration,
    none: T,
    read: impl FnOnce(&mut Current) -> T,
) -> T {
    // SAFETY: the caller's promise.
    quietly(none, || match unsafe { generation.as_ref() } {
        Some(generation) => read(&mut generation.reader().current),
        None => none,
    })
}

fn null(what: &str) -> Error {
    Error::User(format!("{what} is NULL"))
}

/// # Safety
/// `pointer` is NULL or valid for `'a`.
unsafe fn handle<'a, T>(pointer: *const T, what: &str) -> Result<&'a T, Error> {
    // SAFETY: the caller's promise.
    unsafe { pointer.as_ref() }.ok_or_else(|| null(what))
}

/// # Safety
/// `pointer` is NULL, or valid and nobody else's for `'a`.
unsafe fn output<'a, T>(pointer: *mut T, what: &str) -> Result<&'a mut T, Error> {
    // SAFETY: the caller's promise.
    unsafe { pointer.as_mut() }.ok_or_else(|| null(what))
}

/// # Safety
/// `pointer` is NULL or a NUL-terminated string, for `'a`.
unsafe fn bytes<'a>(pointer: *const c_char, what: &str) -> Result<&'a [u8], Error> {
    match pointer.is_null() {
        true => Err(null(what)),
        // SAFETY: the caller's promise.
        false => Ok(unsafe { CStr::from_ptr(pointer) }.to_bytes()),
    }
}

/// # Safety
/// As for [`bytes`].
unsafe fn text<'a>(pointer: *const c_char, what: &str) -> Result<&'a str, Error> {
    // SAFETY: the caller's promise.
    utf8(unsafe { bytes(pointer, what)? }, what)
}

/// # Safety
/// As for [`bytes`].
unsafe fn optional_text<'a>(pointer: *const c_char, what: &str) -> Result<Option<&'a str>, Error> {
    match pointer.is_null() {
        true => Ok(None),
        // SAFETY: the caller's promise.
        false => unsafe { text(pointer, what) }.map(Some),
    }
}

/// # Safety
/// `pointer` has `length` elements for `'a`; it may be NULL where there are none.
unsafe fn slice<'a, T>(pointer: *const T, length: usize, what: &str) -> Result<&'a [T], Error> {
    match (length, pointer.is_null()) {
        (0, _) => Ok(&[]),
        (_, true) => Err(null(what)),
        // SAFETY: the caller's promise.
        (_, false) => Ok(unsafe { std::slice::from_raw_parts(pointer, length) }),
    }
}

fn utf8<'a>(bytes: &'a [u8], what: &str) -> Result<&'a str, Error> {
    std::str::from_utf8(bytes).map_err(|e| {
        let at = e.valid_up_to();
        Error::User(format!("{what} is not UTF-8: byte {at} is wrong"))
    })
}

/// Copies as many elements as there is room for.
///
/// # Safety
/// `out` has room for `capacity` elements; it may be NULL where that is 0.
unsafe fn copy<T: Copy>(all: &[T], out: *mut T, capacity: usize) {
    let count = all.len().min(capacity);
    if count > 0 && !out.is_null() {
        // SAFETY: the caller's promise; the caller's memory is not ours.
        unsafe { std::ptr::copy_nonoverlapping(all.as_ptr(), out, count) };
    }
}

/// Copies as many bytes as there is room for before a NUL; the length of all.
///
/// # Safety
/// As for [`copy`].
unsafe fn copy_text(all: &[u8], out: *mut c_char, capacity: usize) -> usize {
    if capacity > 0 && !out.is_null() {
        // SAFETY: the caller's promise; the last element is left for the NUL.
        unsafe {
            copy(all, out.cast(), capacity - 1);
            out.add(all.len().min(capacity - 1)).write(0);
        }
    }
    all.len()
}

/// JSON as a C string: it has no NUL, which JSON escapes.
fn c_string(json: String) -> CString {
    CString::new(json).unwrap_or_default()
}

#[cfg(unix)]
fn os_path(bytes: &[u8]) -> Result<&Path, Error> {
    use std::os::unix::ffi::OsStrExt;
    Ok(Path::new(std::ffi::OsStr::from_bytes(bytes)))
}

#[cfg(not(unix))]
fn os_path(bytes: &[u8]) -> Result<&Path, Error> {
    utf8(bytes, "path").map(Path::new)
}
