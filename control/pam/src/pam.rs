//! The functions that PAM calls, and PAM's functions that the module calls (pam(3), pam_sm_open_session(3)). libpam's
//! headers are not needed.
#![allow(unsafe_code, reason = "PAM's interface is C")]

use crate::{Opened, Options, Session};
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::panic::catch_unwind;
use std::ptr;
use uvn_api::uvnd::policed::Host;

/// libpam's `pam_handle_t`.
type Handle = *mut c_void;

/// PAM_SUCCESS.
const SUCCESS: c_int = 0;
/// PAM_SESSION_ERR.
const SESSION_ERROR: c_int = 14;
/// PAM_SILENT: nothing is to be said to the user.
const SILENT: c_int = 0x8000;
/// PAM_ERROR_MSG.
const ERROR_MESSAGE: c_int = 3;
/// The longest entry of the user database that is read, bytes.
const MAX_ENTRY: usize = 1 << 20;

// With its number: `libpam.so` without one comes with the headers only.
#[link(name = "libpam.so.0", kind = "dylib", modifiers = "+verbatim")]
unsafe extern "C" {
    fn pam_get_user(handle: Handle, user: *mut *const c_char, prompt: *const c_char) -> c_int;
    /// Writes to syslog, as LOG_AUTHPRIV, with the names of the module and the service.
    fn pam_syslog(handle: Handle, priority: c_int, format: *const c_char, ...);
    /// Writes to the user. If `answer` is null, it frees the answer.
    fn pam_prompt(
        handle: Handle,
        style: c_int,
        answer: *mut *mut c_char,
        format: *const c_char,
        ...
    ) -> c_int;
}

/// PAM opens a session.
#[unsafe(no_mangle)]
extern "C" fn pam_sm_open_session(
    handle: Handle,
    flags: c_int,
    argc: c_int,
    argv: *const *const c_char,
) -> c_int {
    catch_unwind(|| open(handle, flags, &options(handle, argc, argv))).unwrap_or_else(|_| {
        log(handle, libc::LOG_ERR, "the module panicked; the session is refused");
        SESSION_ERROR
    })
}

/// PAM closes a session. Always succeeds.
#[unsafe(no_mangle)]
extern "C" fn pam_sm_close_session(
    handle: Handle,
    _flags: c_int,
    argc: c_int,
    argv: *const *const c_char,
) -> c_int {
    let closed = catch_unwind(|| {
        // Wrong options were logged when the session opened.
        let options = Options::parse(words(argc, argv));
        if let Some(user) = user(handle)
            && user.as_bytes() != b"root"
            && let Ok(uid) = uid(&user)
        {
            session(&user.to_string_lossy(), uid).close(&Host::default(), options.patience);
        }
    });
    if closed.is_err() {
        log(handle, libc::LOG_ERR, "the module panicked when a session closed");
    }
    SUCCESS
}

fn open(handle: Handle, flags: c_int, options: &Options) -> c_int {
    let Some(name) = user(handle) else {
        log(handle, libc::LOG_ERR, "PAM names no user; the session is refused");
        return SESSION_ERROR;
    };
    // Before the user database is asked: root can log in even if that is broken.
    if name.as_bytes() == b"root" {
        return SUCCESS;
    }
    let user = name.to_string_lossy();
    let opened = match uid(&name) {
        Ok(uid) => session(&user, uid).open(&Host::default(), options.patience),
        Err(reason) => Opened::Refused(format!("uvn: no login: cannot find the UID of {user}: {reason}")),
    };
    match opened {
        Opened::Inside => SUCCESS,
        Opened::Without(words) => {
            tell(handle, flags, &words);
            SUCCESS
        }
        Opened::Refused(words) => {
            tell(handle, flags, &words);
            SESSION_ERROR
        }
    }
}

/// The session of this process, which opens the session and then closes it, or ends.
fn session(user: &str, uid: u32) -> Session<'_> {
    Session { user, uid, pid: std::process::id().cast_signed() }
}

fn options(handle: Handle, argc: c_int, argv: *const *const c_char) -> Options {
    let options = Options::parse(words(argc, argv));
    for unknown in &options.unknown {
        log(handle, libc::LOG_WARNING, unknown);
    }
    options
}

fn words(argc: c_int, argv: *const *const c_char) -> Vec<String> {
    let count = usize::try_from(argc).unwrap_or(0);
    // SAFETY: libpam passes argc pointers to strings that live as long as the handle (pam_sm_open_session(3)).
    let word = |index| unsafe { CStr::from_ptr(*argv.add(index)) }.to_string_lossy().into_owned();
    (0..count).map(word).collect()
}

fn user(handle: Handle) -> Option<CString> {
    let mut user = ptr::null();
    // SAFETY: `handle` is what libpam gave us, and there is room for one pointer.
    let status = unsafe { pam_get_user(handle, &raw mut user, ptr::null()) };
    if status != SUCCESS || user.is_null() {
        return None;
    }
    // SAFETY: libpam returned a string, which may change with the next call; it is copied before.
    Some(unsafe { CStr::from_ptr(user) }.to_owned())
}

/// The UID of a user's name, since PAM has only names.
fn uid(name: &CStr) -> Result<u32, String> {
    let mut buffer = vec![0; 1 << 10];
    loop {
        let mut entry = std::mem::MaybeUninit::<libc::passwd>::uninit();
        let mut found = ptr::null_mut();
        // SAFETY: all of it outlives the call, and the buffer is as long as is said.
        let error = unsafe {
            libc::getpwnam_r(
                name.as_ptr(),
                entry.as_mut_ptr(),
                buffer.as_mut_ptr(),
                buffer.len(),
                &raw mut found,
            )
        };
        match error {
            libc::ERANGE if buffer.len() < MAX_ENTRY => buffer.resize(buffer.len() * 4, 0),
            libc::EINTR => {}
            0 if found.is_null() => return Err("the user database has no such user".into()),
            // SAFETY: with 0 and a result, `entry` is filled in.
            0 => return Ok(unsafe { entry.assume_init() }.pw_uid),
            error => {
                let error = std::io::Error::from_raw_os_error(error);
                return Err(format!("the user database cannot be asked: {error}"));
            }
        }
    }
}

/// Writes to syslog and, unless PAM_SILENT is set, to the user.
fn tell(handle: Handle, flags: c_int, text: &str) {
    log(handle, libc::LOG_ERR, text);
    if flags & SILENT == 0 {
        let text = c_string(text);
        // SAFETY: `handle` is what libpam gave us, and the format takes one string.
        unsafe { pam_prompt(handle, ERROR_MESSAGE, ptr::null_mut(), c"%s".as_ptr(), text.as_ptr()) };
    }
}

fn log(handle: Handle, priority: c_int, text: &str) {
    let text = c_string(text);
    // SAFETY: `handle` is what libpam gave us, and the format takes one string.
    unsafe { pam_syslog(handle, priority, c"%s".as_ptr(), text.as_ptr()) };
}

fn c_string(text: &str) -> CString {
    CString::new(text.replace('\0', " ")).unwrap_or_default()
}
