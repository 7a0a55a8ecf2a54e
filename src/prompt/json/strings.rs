//! A document's strings: most of its bytes.

use std::sync::Arc;

use wide::u8x16;

use super::read::Parser;
use super::{Fault, JsonError};

/// Bytes that are looked at together.
const BLOCK: usize = 16;
/// Strings of up to so many bytes are made once where they repeat, as keys and roles do.
const SHORT_BYTES_MAX: usize = 24;
/// How many of them are known at once.
const KNOWN: usize = 32;

/// The short strings that were read last, each in the place that its hash says.
#[derive(Default)]
pub struct Known([Option<Arc<str>>; KNOWN]);

impl Known {
    fn share(&mut self, text: &str) -> Arc<str> {
        if text.len() > SHORT_BYTES_MAX {
            return text.into();
        }
        let bytes = text.as_bytes();
        let ends = bytes.first().zip(bytes.last());
        let ends = ends.map_or(0, |(first, last)| {
            usize::from(*first) ^ usize::from(*last) << 2
        });
        let place = &mut self.0[(ends ^ text.len()) % KNOWN];
        match place {
            Some(known) if **known == *text => Arc::clone(known),
            place => Arc::clone(place.insert(text.into())),
        }
    }
}

impl Parser<'_> {
    /// A string, or none where half of a surrogate pair is in it.
    pub fn string(&mut self) -> Result<Option<Arc<str>>, JsonError> {
        self.at += 1;
        let start = self.at;
        self.skip_plain();
        if self.peek() == Some(b'"') {
            self.at += 1;
            return Ok(Some(self.known.share(&self.text[start..self.at - 1])));
        }
        self.unescaped.clear();
        self.unescaped
            .extend_from_slice(&self.text.as_bytes()[start..self.at]);
        let mut whole = true;
        loop {
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    let text = || {
                        // Whole characters of a text, and characters between them.
                        simdutf8::basic::from_utf8(&self.unescaped).expect("UTF-8")
                    };
                    return Ok(whole.then(|| text().into()));
                }
                Some(b'\\') => match self.escape()? {
                    Some(c) if c.is_ascii() => self.unescaped.push(c as u8),
                    Some(c) => {
                        let mut utf8 = [0; 4];
                        let utf8 = c.encode_utf8(&mut utf8).as_bytes();
                        self.unescaped.extend_from_slice(utf8);
                    }
                    None => whole = false,
                },
                _ => return Err(Fault::Syntax.at(self.at)),
            }
            self.copy_plain();
        }
    }

    /// To the next quote, backslash or control character, or the end.
    fn skip_plain(&mut self) {
        let rest = &self.text.as_bytes()[self.at..];
        let (blocks, tail) = rest.as_chunks::<BLOCK>();
        for block in blocks {
            let plain = plain_bytes(block);
            self.at += plain;
            if plain < BLOCK {
                return;
            }
        }
        self.at += tail.iter().take_while(|byte| is_plain(**byte)).count();
    }

    /// The same, and takes what is passed over into the string.
    fn copy_plain(&mut self) {
        let rest = &self.text.as_bytes()[self.at..];
        let (blocks, tail) = rest.as_chunks::<BLOCK>();
        for block in blocks {
            let plain = plain_bytes(block);
            self.at += plain;
            // A copy of a length that is known costs an instruction; what is too much goes again.
            self.unescaped.extend_from_slice(block);
            if plain < BLOCK {
                self.unescaped
                    .truncate(self.unescaped.len() - (BLOCK - plain));
                return;
            }
        }
        let plain = tail.iter().take_while(|byte| is_plain(**byte)).count();
        self.unescaped.extend_from_slice(&tail[..plain]);
        self.at += plain;
    }

    /// The character of an escape; none for half of a surrogate pair.
    fn escape(&mut self) -> Result<Option<char>, JsonError> {
        let start = self.at;
        self.at += 2;
        let c = match self.text.as_bytes().get(start + 1) {
            Some(b'"') => '"',
            Some(b'\\') => '\\',
            Some(b'/') => '/',
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            Some(b'u') => return self.unicode_escape(start),
            _ => return Err(Fault::Syntax.at(start)),
        };
        Ok(Some(c))
    }

    fn unicode_escape(&mut self, start: usize) -> Result<Option<char>, JsonError> {
        let unit = self.hex4().ok_or(Fault::Syntax.at(start))?;
        if !(0xd800..0xdc00).contains(&unit) {
            return Ok(char::from_u32(unit));
        }
        let after_high = self.at;
        if self.take("\\u") {
            let low = self.hex4().ok_or(Fault::Syntax.at(after_high))?;
            if (0xdc00..0xe000).contains(&low) {
                let code = 0x1_0000 + ((unit - 0xd800) << 10) + (low - 0xdc00);
                return Ok(char::from_u32(code));
            }
            self.at = after_high;
        }
        Ok(None)
    }

    fn hex4(&mut self) -> Option<u32> {
        let digits = self.text.as_bytes().get(self.at..self.at + 4)?;
        let mut unit = 0;
        for digit in digits {
            unit = unit * 16 + char::from(*digit).to_digit(16)?;
        }
        self.at += 4;
        Some(unit)
    }
}

/// How many bytes of a block come before a quote, a backslash or a control character.
fn plain_bytes(block: &[u8; BLOCK]) -> usize {
    const CONTROL: u8 = 0x1f;
    let bytes = u8x16::new(*block);
    let special = bytes.simd_eq(u8x16::splat(b'"'))
        | bytes.simd_eq(u8x16::splat(b'\\'))
        | bytes.min(u8x16::splat(CONTROL)).simd_eq(bytes);
    match special.to_bitmask() {
        0 => BLOCK,
        mask => mask.trailing_zeros() as usize,
    }
}

fn is_plain(byte: u8) -> bool {
    byte >= 0x20 && byte != b'"' && byte != b'\\'
}
