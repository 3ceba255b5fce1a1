//! What this process and this machine are, for the report.

/// Largest resident memory of this process so far, in bytes; 0 where the system does not tell.
pub(crate) fn peak_rss_bytes() -> u64 {
    status_bytes("VmHWM:").unwrap_or(0)
}

/// Starts the measurement of the largest resident memory anew, where the system can.
pub(crate) fn reset_peak_rss() {
    // Linux resets the high-water mark when 5 is written here; elsewhere the mark stays.
    let _ = fs_err::write("/proc/self/clear_refs", "5");
}

fn status_bytes(key: &str) -> Option<u64> {
    let status = fs_err::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(key))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// The processor's name and the instruction set that the kernels use.
pub(crate) fn cpu() -> String {
    let info = fs_err::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .map_or("unknown processor", |rest| {
            rest.trim_start_matches([' ', '\t', ':']).trim()
        });
    let isa = neuroconv_kernels::isa().map_or("no instruction set", |isa| isa.name());
    format!("{name}, {isa}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn memory_is_told_and_grows() {
        reset_peak_rss();
        let before = peak_rss_bytes();
        assert!(before > 0);
        let block = std::hint::black_box(vec![1u8; 64 << 20]);
        assert!(peak_rss_bytes() >= before + (32 << 20), "{}", block.len());
    }
}
