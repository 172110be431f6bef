//! The texts on which an implementation must give the IDs of the reference before it is used.

use super::{Tokenize, Vocabulary};

/// Texts with many scripts, spaces, marks, joiners, strings that look like special tokens, and combinations of them.
const TEXTS: [&str; 32] = [
    "",
    " ",
    "a",
    "Hello, world! It's 3,141.59 km away, isn't it?",
    " leading, trailing  and   inner    spaces \n",
    "The quick brown fox jumps over the lazy dogs; THE QUICK BROWN FOX. camelCase snake_case x1 y22 z333 4444 55555",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich. ẞ",
    "Le cœur déçu mais l'âme plutôt naïve, Louÿs rêva de crapaüter en canoë.",
    "Pchnąć w tę łódź jeża lub ośm skrzyń fig. Příliš žluťoučký kůň. İstanbul ılık",
    "Съешь же ещё этих мягких французских булок, да выпей чаю. Ґрунт їжак",
    "Όλοι οι άνθρωποι γεννιούνται ελεύθεροι",
    "כל בני האדם נולדו בני חורין يولد جميع الناس أحرارا می‌آیند ﷺ",
    "सभी मनुष्यों को स्वतन्त्रता प्राप्त है। সমস্ত মানুষ மனிதப் பிறவியினர்",
    "มนุษย์ทั้งหลายเกิดมามีอิสระ ყველა ადამიანი Բոլոր մարդիկ ሰብዓዊ",
    "안녕하세요, 세계! 모든 인간은 태어날 때부터 자유로우며",
    "すべての人間は、生まれながらにして自由であり、カタカナ。ﾊﾝｶｸ",
    "人人生而自由,在尊严和权利上一律平等。人人生而自由，在尊嚴和權利上一律平等。𠀀𠀁",
    "e\u{301} \u{301}a\u{327}\u{301} Å Å ﬁ ① ½ \u{1100}\u{1161}\u{11a8}",
    "👩‍👩‍👧‍👦🏳️‍🌈 🇩🇪👍🏽 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 ☃☃ ™",
    "a\u{a0}b\u{2007}c\u{202f}d\u{3000}e\u{200b}f\u{200d}g\u{feff}h\u{2028}i\u{85}j",
    "\0\u{1}\u{7f}\u{d7ff}\u{e000}\u{fffd}\u{ffff}\u{10000}\u{10ffff}",
    "▁ ▁▁ a▁b ▁c d▁",
    "one\ntwo\r\nthree\n\n\nfour\t\tfive \t six\n    indented\n\tby tab",
    "fn main() { let x: Vec<u32> = (0..10).map(|i| i * 2).collect(); } // <= != -> => ::",
    "<table><tr><td>cell</td></tr></table> [INST] <0x0A> <0xE2><0x96><0x81> <s",
    "https://example.org/a/b?c=d&e=%20f#g user@example.com C:\\Users\\x",
    "{\"a\": [1, 2.5e-3, null], \"b\": \"\\u00e9\"}",
    "don't I'LL we've 'tis ''' \"\"\" --- ... ??? !!! ###",
    "1 12 123 1234 12345 1234567890 ١٢٣ १२३ 一二三",
    "<s> </s> <unk> <pad> <bos> <|endoftext|> <|im_start|>user<|im_end|>",
    "Donaudampfschifffahrtsgesellschaftskapitän pneumonoultramicroscopicsilicovolcanoconiosis",
    "ⅣⅤ ʰʷ ﷽ ꧁꧂ ᚠᛇᚻ ⠓⠑⠇⠇⠕ 𓀀",
];

/// Strings to repeat, for long words and runs that merge with themselves.
const RUNS: [&str; 8] = ["a", " ", "ab", "\n", "あ", "é", "=", "▁"];
const RUN: usize = 300;

/// The number of added tokens that are tried.
const ADDED: usize = 10_000;

/// Describes the first text on which `candidate` and `reference` differ. Returns `None` when they agree on all texts.
pub fn difference(reference: &dyn Tokenize, candidate: &dyn Tokenize, vocabulary: &Vocabulary) -> Option<String> {
    let runs = RUNS.iter().map(|part| part.repeat(RUN));
    let together: String = TEXTS.join("\n");
    // Each added token is tried between letters and between spaces.
    let added: Vec<&str> = vocabulary.added.iter().take(ADDED).map(|token| token.content.as_str()).collect();
    let added = added.chunks(16).map(|tokens| format!("{} {} a", tokens.join("x"), tokens.join(" ")));
    let texts = TEXTS.iter().map(|text| (*text).to_owned()).chain(runs).chain([together]).chain(added);
    texts.zip([true, false].into_iter().cycle()).find_map(|(text, special)| {
        let (mut expected, mut found) = (Vec::new(), Vec::new());
        let expected_result = reference.encode(&text, special, &mut expected);
        let found_result = candidate.encode(&text, special, &mut found);
        let same = expected_result.is_ok() == found_result.is_ok() && (expected_result.is_err() || expected == found);
        let start: String = text.chars().take(40).collect();
        (!same).then(|| format!("other ids than the reference's for a text that begins with {start:?}"))
    })
}
