//! Reading memory as fast as a core can: what products of one row are measured against.

/// Words that are combined side by side, so that no load waits for another.
const WORDS: usize = 16;

/// Reads all of `bytes` once, in order, and gives their exclusive or, up to the last words that do
/// not fill a block. A machine's streaming-read bandwidth is what this reaches on a block of memory
/// far larger than its caches.
pub fn stream_read(bytes: &[u8]) -> u64 {
    let mut words = [0_u64; WORDS];
    for block in bytes.as_chunks::<{ 8 * WORDS }>().0 {
        for (word, bytes) in words.iter_mut().zip(block.as_chunks().0) {
            *word ^= u64::from_le_bytes(*bytes);
        }
    }
    words.iter().fold(0, |all, word| all ^ word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_of_whole_blocks_counts() {
        let mut bytes = vec![0; 3 * 128 + 5];
        assert_eq!(stream_read(&bytes), 0);
        for at in [0, 7, 129, 383] {
            bytes[at] ^= 0x40;
            assert_ne!(stream_read(&bytes), 0);
            bytes[at] ^= 0x40;
        }
    }
}
