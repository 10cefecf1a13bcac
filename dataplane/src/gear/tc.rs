//! tc programs attached by links: closing a link detaches its program.

use crate::bpf;
use aya::programs::links::FdLink;
use aya::programs::tc::TcAttachOptions;
use aya::programs::{LinkOrder, ProgramError, SchedClassifier, TcAttachType};

/// A tc program of an object.
///
/// # Errors
/// The object has none of this name.
pub(super) fn program<'a>(
    object: &'a mut aya::Ebpf,
    name: &str,
) -> Result<&'a mut SchedClassifier, ProgramError> {
    object.program_mut(name).ok_or(ProgramError::NotLoaded)?.try_into()
}

/// Attaches a program in front of all others, so that no other program sees a tenant's frame.
///
/// # Errors
/// The kernel does not attach tc programs as links, or the device does not exist.
pub(super) fn link(
    program: &mut SchedClassifier,
    device: &str,
    at: TcAttachType,
) -> Result<FdLink, ProgramError> {
    let id = program.attach_with_options(device, at, TcAttachOptions::TcxOrder(LinkOrder::first()))?;
    let link = program.take_link(id)?;
    link.try_into().map_err(|_| ProgramError::NotLoaded)
}

/// Whether another program has detached it. False if the kernel does not tell.
pub(super) fn is_detached(link: &FdLink) -> bool {
    link.info().is_ok_and(|link| bpf::is_attached(link.id()).is_ok_and(|attached| !attached))
}
