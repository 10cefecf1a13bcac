//! The hooks that Slurm calls, and Slurm's functions that the plugin calls (slurm/spank.h; unchanged from 20.11 on).
#![allow(unsafe_code, reason = "Slurm's interface is C")]

use crate::{Options, Step};
use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::panic::catch_unwind;
use std::sync::OnceLock;
use uvn_api::uvnd::policed::Host;

/// The plugin's name; the loader looks these three symbols up (plugin.c, `_verify_syms`).
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals, reason = "the name is Slurm's")]
static plugin_name: [u8; 4] = *b"uvn\0";
/// The plugin's type.
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals, reason = "the name is Slurm's")]
static plugin_type: [u8; 6] = *b"spank\0";
/// Slurm's version: a plugin for another major or minor version is refused.
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals, reason = "the name is Slurm's")]
static plugin_version: c_uint = version();

/// The version number that build.rs found; 0: none.
const fn version() -> c_uint {
    match c_uint::from_str_radix(env!("SLURM_VERSION_NUMBER"), 10) {
        Ok(number) => number,
        Err(_) => 0,
    }
}

/// Slurm's `spank_t`.
type Spank = *mut c_void;

/// ESPANK_SUCCESS.
const SUCCESS: c_int = 0;
/// A hook's result after a failure.
const ERROR: c_int = -1;
/// S_CTX_REMOTE: slurmstepd.
const REMOTE: c_uint = 2;
/// S_JOB_UID.
const UID: c_uint = 0;
/// S_JOB_ID.
const JOB: c_uint = 2;
/// S_JOB_STEPID.
const STEP: c_uint = 3;
/// S_TASK_ID: its number among the step's tasks on this node.
const TASK: c_uint = 11;

unsafe extern "C" {
    fn spank_context() -> c_uint;
    fn spank_get_item(spank: Spank, item: c_uint, ...) -> c_int;
    /// Writes to slurmd's log, and to the job's standard error once that exists.
    fn slurm_error(format: *const c_char, ...);
}

/// Why the step's tasks must not start; set before they are forked.
static FAILURE: OnceLock<CString> = OnceLock::new();

/// Runs in slurmstepd, as root, once per step.
#[unsafe(no_mangle)]
extern "C" fn slurm_spank_init_post_opt(spank: Spank, argc: c_int, argv: *const *const c_char) -> c_int {
    // SAFETY: no arguments.
    if unsafe { spank_context() } != REMOTE {
        return SUCCESS;
    }
    let attached =
        catch_unwind(|| attach(spank, argc, argv)).unwrap_or_else(|_| Err("the plugin panicked".into()));
    if let Err(reason) = attached {
        let text = format!("uvn: no network for this job on this node: {reason}").replace('\0', " ");
        let failure = FAILURE.get_or_init(|| CString::new(text).unwrap_or_default());
        log(failure);
    }
    SUCCESS
}

/// Runs in each process that becomes a task, forked from slurmstepd, still as root.
#[unsafe(no_mangle)]
extern "C" fn slurm_spank_task_init_privileged(
    spank: Spank,
    _argc: c_int,
    _argv: *const *const c_char,
) -> c_int {
    let Some(failure) = FAILURE.get() else { return SUCCESS };
    // Logged once per node.
    if item(spank, TASK).is_ok_and(|task| task == 0) {
        log(failure);
    }
    ERROR
}

fn attach(spank: Spank, argc: c_int, argv: *const *const c_char) -> Result<(), String> {
    let mut words = Vec::new();
    for index in 0..usize::try_from(argc).unwrap_or(0) {
        // SAFETY: Slurm's plugstack.c passes argc pointers to strings that live as long as the plugin.
        words.push(unsafe { CStr::from_ptr(*argv.add(index)) }.to_string_lossy());
    }
    let options = Options::parse(words.iter().map(AsRef::as_ref))?;
    let step = Step { uid: item(spank, UID)?, job: item(spank, JOB)?, step: item(spank, STEP)? };
    step.attach(&Host::default(), options.patience, std::process::id().cast_signed())
}

/// One of the items that are a 32-bit integer: [`UID`], [`JOB`], [`STEP`], [`TASK`].
fn item(spank: Spank, item: c_uint) -> Result<u32, String> {
    let mut value = 0_u32;
    // SAFETY: `spank` is what Slurm gave us, and these items are written through a pointer to 32 bits.
    let status = unsafe { spank_get_item(spank, item, &raw mut value) };
    if status == SUCCESS {
        Ok(value)
    } else {
        Err(format!("cannot read item {item} from Slurm: error {status}"))
    }
}

fn log(text: &CStr) {
    // SAFETY: the format takes one string.
    unsafe { slurm_error(c"%s".as_ptr(), text.as_ptr()) };
}
