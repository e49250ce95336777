//! Stub, to be replaced.
use crate::frame::View;
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Scratch {
    pub h: [u32; 8],
    pub m: [u32; 16],
}
#[inline(always)]
pub fn initiation(message: &View<'_, 148>, key: &[u32; 8], scratch: &mut Scratch) -> bool {
    scratch.h[0] = key[0] ^ message.word::<116>();
    scratch.h[0] != 0
}
#[inline(always)]
pub fn response(message: &View<'_, 92>, key: &[u32; 8], scratch: &mut Scratch) -> bool {
    scratch.h[0] = key[0] ^ message.word::<60>();
    scratch.h[0] != 0
}
#[cfg(not(target_arch = "bpf"))]
pub fn key(public_key: &[u8; 32]) -> [u32; 8] {
    std::array::from_fn(|i| u32::from(public_key[i]))
}
