//! Sets of code points, looked up by code point.
//!
//! A split expression names a few sets, such as `\p{L}` and `[\r\n]`. Each set has a bit, and a table gives for each code point the
//! bits of the sets that hold it, so that one table read answers for all sets at once. With `\p{L}` as bit 0 and `\s` as bit 1, the
//! entry of `a` is `0b01`, the entry of a space is `0b10`, and the entry of `7` is `0b00`.

use regex_syntax::hir::{Class, HirKind};

use crate::DefinitionError;

/// A bit for each set.
pub type Bits = u16;

/// The sets that one tokenizer needs.
#[derive(Default)]
pub struct Sets {
    /// The class expression or the name of each set; its position is the position of its bit.
    names: Vec<String>,
    /// The bits of each code point, up to the last one at which they change.
    table: Vec<Bits>,
    /// The bits of every code point beyond the table.
    beyond: Bits,
}

impl Sets {
    /// Returns the bit of the set that the class expression `class` describes, and adds the set if it is new. The set is what the
    /// crate regex-syntax takes it for, which is also what the regular expressions of the `tokenizers` crate are built on.
    ///
    /// # Errors
    /// When `class` is not the expression of one code point, or there are too many sets.
    pub fn class(&mut self, class: &str) -> Result<Bits, DefinitionError> {
        self.named(class, || {
            let parsed = regex_syntax::parse(class).map_err(|e| DefinitionError::unsupported(e.to_string()))?;
            match parsed.kind() {
                HirKind::Class(Class::Unicode(found)) => {
                    Ok(found.ranges().iter().map(|range| (range.start() as usize, range.end() as usize)).collect())
                }
                HirKind::Literal(literal) => {
                    let mut characters = std::str::from_utf8(&literal.0).unwrap_or_default().chars();
                    let (Some(only), None) = (characters.next(), characters.next()) else {
                        return Err(DefinitionError::unsupported(format!("{class:?} is not one code point")));
                    };
                    Ok(vec![(only as usize, only as usize)])
                }
                _ => Err(DefinitionError::unsupported(format!("{class:?} is not a class of code points"))),
            }
        })
    }

    /// Returns the bit of the set of code points that [`char::is_numeric`] accepts: the `Digits` pre-tokenizer splits by them.
    ///
    /// # Errors
    /// When there are too many sets.
    pub fn numeric(&mut self) -> Result<Bits, DefinitionError> {
        let is_numeric = |number: u32| char::from_u32(number).is_some_and(char::is_numeric);
        self.named("char::is_numeric", || {
            Ok((0..=0x10_FFFF)
                .filter(|&number| is_numeric(number))
                .map(|number| (number as usize, number as usize))
                .collect())
        })
    }

    fn named(
        &mut self,
        name: &str,
        ranges: impl FnOnce() -> Result<Vec<(usize, usize)>, DefinitionError>,
    ) -> Result<Bits, DefinitionError> {
        if let Some(at) = self.names.iter().position(|known| known == name) {
            return Ok(1 << at);
        }
        let at = self.names.len() as u32;
        if at >= Bits::BITS {
            return Err(DefinitionError::too_large(
                "the pre-tokenizer names more classes of characters than are reproduced",
            ));
        }
        let bit: Bits = 1 << at;
        for (start, end) in ranges()? {
            let to_the_last = end == char::MAX as usize;
            let needed = if to_the_last { start } else { end + 1 };
            if self.table.len() < needed {
                self.table.resize(needed, self.beyond);
            }
            if to_the_last {
                self.beyond |= bit;
            }
            let end = (end + 1).min(self.table.len());
            self.table.get_mut(start..end).unwrap_or_default().iter_mut().for_each(|bits| *bits |= bit);
        }
        self.names.push(name.to_owned());
        Ok(bit)
    }

    /// The sets that hold the code point.
    #[inline]
    pub fn of(&self, code_point: u32) -> Bits {
        self.table.get(code_point as usize).copied().unwrap_or(self.beyond)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_code_point_is_in_the_sets_whose_classes_match_it() {
        let mut sets = Sets::default();
        let classes =
            [r"\p{L}", r"[^\s\p{L}\p{N}]", r"[\p{Lu}\p{M}&&[^\p{Han}]]", r"\s", "/", r"[\x{10fff0}-\x{10ffff}]"];
        let bits: Vec<Bits> = classes.iter().map(|class| sets.class(class).unwrap()).collect();
        let numeric = sets.numeric().unwrap();
        assert_eq!(bits, [1, 2, 4, 8, 16, 32]);
        assert_eq!(sets.class(r"\s").unwrap(), 8, "a set is added once");
        for (class, bit) in classes.iter().zip(bits) {
            let expression = fancy_regex(class);
            for c in '\0'..=char::MAX {
                assert_eq!(sets.of(c as u32) & bit != 0, expression(c), "{class} {c:?}");
            }
        }
        assert!(('\0'..=char::MAX).all(|c| (sets.of(c as u32) & numeric != 0) == c.is_numeric()));
    }

    /// What the reference's regular expression says of a code point alone.
    fn fancy_regex(class: &str) -> impl Fn(char) -> bool {
        let expression = tokenizers::utils::SysRegex::new(class).unwrap();
        move |c| expression.find_iter(c.encode_utf8(&mut [0; 4])).next().is_some()
    }

    #[test]
    fn what_is_not_one_code_point_is_refused() {
        let mut sets = Sets::default();
        for wrong in ["ab", "a|bc", "^", r"\s+", "[", ""] {
            assert!(sets.class(wrong).is_err(), "{wrong}");
        }
        for n in 0..16 {
            sets.class(&format!("[a-{}]", char::from(b'b' + n))).unwrap();
        }
        assert!(sets.class("[xyz]").unwrap_err().to_string().contains("more classes"));
    }
}
