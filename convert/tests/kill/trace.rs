//! A process that is followed step by step, and killed before one of them.
//!
//! Owns what a step is: a system call that can change a file or folder. They are seen by tracing all
//! threads of the process, so nothing in it needs to know; and counted, so that a kill that did not
//! land is noticed.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::{Command, Stdio};

use nix::libc;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// How a process ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// By itself, after so many steps.
    Finished { steps: usize },
    /// Right before this call.
    Killed { before: &'static str },
}

/// Runs `command`, which waits for a byte on its input before it begins, and kills it right before its
/// step `at`, counted from 1. Panics where it fails by itself.
#[expect(
    clippy::zombie_processes,
    reason = "it is waited for with all its threads, as what is traced has to be"
)]
pub(crate) fn run(command: &mut Command, at: usize) -> End {
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    let process = Pid::from_raw(child.id().cast_signed());
    let options =
        Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_TRACECLONE | Options::PTRACE_O_EXITKILL;
    ptrace::seize(process, options).unwrap();
    ptrace::interrupt(process).unwrap();
    child.stdin.take().unwrap().write_all(b"\n").unwrap();
    let mut inside: BTreeMap<Pid, bool> = BTreeMap::new();
    let mut steps = 0;
    loop {
        match next() {
            WaitStatus::PtraceSyscall(thread) => {
                let inside = inside.entry(thread).or_default();
                *inside = !*inside;
                if let Some(before) = step(thread).filter(|_| *inside) {
                    steps += 1;
                    if steps == at {
                        kill(process, Signal::SIGKILL).unwrap();
                        // Every thread has to be waited for: the process ends after the last.
                        while next() != WaitStatus::Signaled(process, Signal::SIGKILL, false) {}
                        return End::Killed { before };
                    }
                }
                go_on(thread, None);
            }
            WaitStatus::PtraceEvent(thread, _, _)
            | WaitStatus::Stopped(thread, Signal::SIGTRAP | Signal::SIGSTOP) => go_on(thread, None),
            WaitStatus::Stopped(thread, signal) => go_on(thread, Some(signal)),
            WaitStatus::Exited(pid, code) if pid == process => {
                assert_eq!(code, 0, "the child failed by itself");
                return End::Finished { steps };
            }
            WaitStatus::Signaled(pid, signal, _) if pid == process => {
                panic!("the child was ended by {signal}")
            }
            _ => {}
        }
    }
}

/// What happened next to any thread.
fn next() -> WaitStatus {
    waitpid(Pid::from_raw(-1), Some(WaitPidFlag::__WALL)).unwrap()
}

/// A thread that is gone meanwhile needs nothing.
fn go_on(thread: Pid, signal: Option<Signal>) {
    let _ = ptrace::syscall(thread, signal);
}

/// The name of the call that a thread is about to make, if it can change a file or folder.
fn step(thread: Pid) -> Option<&'static str> {
    let registers = ptrace::getregs(thread).ok()?;
    let [call, first, second, third] = [
        registers.orig_rax,
        registers.rdi,
        registers.rsi,
        registers.rdx,
    ]
    .map(u64::cast_signed);
    let writes = |flags: i64| {
        let bits = libc::O_CREAT | libc::O_TRUNC | libc::O_WRONLY | libc::O_RDWR;
        flags & i64::from(bits) != 0
    };
    let standard = (0..=2).contains(&first);
    Some(match call {
        libc::SYS_openat if writes(third) => "openat",
        libc::SYS_open if writes(second) => "open",
        libc::SYS_write if !standard => "write",
        libc::SYS_writev if !standard => "writev",
        libc::SYS_pwrite64 => "pwrite64",
        libc::SYS_copy_file_range => "copy_file_range",
        libc::SYS_ftruncate => "ftruncate",
        libc::SYS_fallocate => "fallocate",
        libc::SYS_fsync => "fsync",
        libc::SYS_fdatasync => "fdatasync",
        libc::SYS_mkdir | libc::SYS_mkdirat => "mkdir",
        libc::SYS_unlink | libc::SYS_unlinkat | libc::SYS_rmdir => "unlink",
        libc::SYS_rename | libc::SYS_renameat | libc::SYS_renameat2 => "rename",
        libc::SYS_link | libc::SYS_linkat | libc::SYS_symlink | libc::SYS_symlinkat => "link",
        libc::SYS_chmod | libc::SYS_fchmod | libc::SYS_fchmodat => "chmod",
        _ => return None,
    })
}
