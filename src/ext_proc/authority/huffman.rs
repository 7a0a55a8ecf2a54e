//! HPACK's Huffman code (RFC 7541, appendix B), as far as an authority has it.
//!
//! The code is canonical: codes of one length follow each other in the order of their characters, and longer
//! ones are greater. So where a code ends follows from its value alone, without the characters that they mean.

/// Lengths in bits, each with the first code that is longer. An authority's characters have 5 to 15 bits.
const LENGTHS: [(u32, u32); 10] = [
    (5, 0xa),
    (6, 0x2e),
    (7, 0x7c),
    (8, 0xfe),
    (10, 0x3fd),
    (11, 0x7fd),
    (12, 0xffc),
    (13, 0x1ffe),
    (14, 0x3ffe),
    (15, 0x7fff),
];

/// Replaces codes by others that are as long: `(bits, from, to)`.
pub fn replace(text: &mut [u8], codes: &[(u32, u32, u32)]) {
    let (mut at, end) = (0, text.len() * 8);
    while let Some((length, code)) = next(text, at, end) {
        let found = codes
            .iter()
            .find(|(bits, from, _)| (*bits, *from) == (length, code));
        if let Some((_, from, to)) = found {
            let differ = from ^ to;
            for bit in
                (0..length as usize).filter(|bit| differ >> (length as usize - 1 - bit) & 1 == 1)
            {
                let place = at + bit;
                text[place / 8] ^= 0x80 >> (place % 8);
            }
        }
        at += length as usize;
    }
}

/// The code that begins at a bit; none where padding does, or a character that no authority has.
fn next(text: &[u8], at: usize, end: usize) -> Option<(u32, u32)> {
    LENGTHS.iter().find_map(|(length, beyond)| {
        let bits = at..at + *length as usize;
        if bits.end > end {
            return None;
        }
        let bit =
            |code, place: usize| code << 1 | u32::from(text[place / 8] >> (7 - place % 8) & 1);
        let code = bits.fold(0, bit);
        (code < *beyond).then_some((*length, code))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `www.example.com`, as RFC 7541 (C.4.1) has it.
    const EXAMPLE: [u8; 12] = [
        0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff,
    ];

    #[test]
    fn what_is_not_meant_stays() {
        let mut text = EXAMPLE;
        replace(&mut text, &[(11, 0x7fc, 0x7fb)]);
        assert_eq!(text, EXAMPLE);
    }

    #[test]
    fn a_character_is_found_wherever_its_bits_lie() {
        // Dots (0x17) become dashes (0x16): both of six bits, here at bits 21 and 64.
        let mut text = EXAMPLE;
        replace(&mut text, &[(6, 0x17, 0x16)]);
        let changed: Vec<usize> = (0..96)
            .filter(|bit| (text[bit / 8] ^ EXAMPLE[bit / 8]) >> (7 - bit % 8) & 1 == 1)
            .collect();
        assert_eq!(changed, [26, 72]);
    }
}
