//! Generates texts on which tokenizers are compared: from a seed, in many scripts, some of them hostile, and never the same text twice.

use fastrand::Rng;
use layer0_tokenizers::reference::HfTokenizer;
use serde_json::Value;

/// Sentences in many scripts: the first article of the Universal Declaration of Human Rights, and some everyday sentences.
const SENTENCES: &[&str] = &[
    "All human beings are born free and equal in dignity and rights.",
    "They are endowed with reason and conscience and should act towards one another in a spirit of brotherhood.",
    "The quick brown fox doesn't jump over 13 lazy dogs; it's 3,141.59 km away, isn't it?",
    "Alle Menschen sind frei und gleich an Würde und Rechten geboren.",
    "Tous les êtres humains naissent libres et égaux en dignité et en droits.",
    "Todos los seres humanos nacen libres e iguales en dignidad y derechos.",
    "Tutti gli esseri umani nascono liberi ed eguali in dignità e diritti.",
    "Todos os seres humanos nascem livres e iguais em dignidade e em direitos.",
    "Wszyscy ludzie rodzą się wolni i równi pod względem swej godności i swych praw.",
    "Všichni lidé rodí se svobodní a sobě rovní co do důstojnosti a práv.",
    "Minden emberi lény szabadon születik és egyenlő méltósága és joga van.",
    "Kaikki ihmiset syntyvät vapaina ja tasavertaisina arvoltaan ja oikeuksiltaan.",
    "Bütün insanlar hür, haysiyet ve haklar bakımından eşit doğarlar.",
    "Tất cả mọi người sinh ra đều được tự do và bình đẳng về nhân phẩm và quyền.",
    "Все люди рождаются свободными и равными в своем достоинстве и правах.",
    "Всі люди народжуються вільними і рівними у своїй гідності та правах.",
    "Όλοι οι άνθρωποι γεννιούνται ελεύθεροι και ίσοι στην αξιοπρέπεια και τα δικαιώματα.",
    "כל בני האדם נולדו בני חורין ושווים בערכם ובזכויותיהם.",
    "يولد جميع الناس أحرارا متساوين في الكرامة والحقوق.",
    "تمام افراد بشر آزاد به دنیا می‌آیند و از لحاظ حیثیت و حقوق با هم برابرند.",
    "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता और समानता प्राप्त है।",
    "সমস্ত মানুষ স্বাধীনভাবে সমান মর্যাদা এবং অধিকার নিয়ে জন্মগ্রহণ করে।",
    "மனிதப் பிறவியினர் சகலரும் சுதந்திரமாகவே பிறக்கின்றனர்.",
    "มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกันในเกียรติศักดิ์และสิทธิ",
    "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다.",
    "すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。",
    "人人生而自由,在尊严和权利上一律平等。他们赋有理性和良心。",
    "人人生而自由，在尊嚴和權利上一律平等。",
    "ყველა ადამიანი იბადება თავისუფალი და თანასწორი თავისი ღირსებითა და უფლებებით.",
    "Բոլոր մարդիկ ծնվում են ազատ ու հավասար իրենց արժանապատվությամբ ու իրավունքներով։",
    "ሰብዓዊ ፍጡራን ሁሉ ነጻ ሁነው ሲወለዱ በክብርና በመብትም እኩል ናቸው።",
    "fn main() {\n    let x: Vec<u32> = (0..10).map(|i| i * 2).collect();\n\tprintln!(\"{x:?}\");\n}\n",
    "<table><tr><td>cell</td></tr></table>\n\n\n# Title\n\n* item one\n* item two\n",
    "https://example.org/a/b?c=d&e=%20f#g  user@example.com  C:\\Users\\x  +49 (0)30 1234-567",
    "SELECT name, COUNT(*) FROM users WHERE id <> 7 GROUP BY 1 HAVING COUNT(*) >= 10; -- done",
    "{\"a\": [1, 2.5e-3, null, true], \"b\": {\"c\": \"\\u00e9\"}}",
];

/// Strings that are hard for tokenizers: spaces of all kinds, combining marks, joiners, neighbors of surrogates, and text like byte tokens.
const ODD: &[&str] = &[
    " ",
    "  ",
    "   ",
    "\n",
    "\n\n",
    "\r\n",
    "\t",
    "\u{a0}",
    "\u{2007}",
    "\u{202f}",
    "\u{3000}",
    "\u{200b}",
    "\u{200d}",
    "\u{feff}",
    "▁",
    "▁▁",
    "▁ ▁",
    " ▁",
    "\0",
    "\u{1}",
    "\u{7f}",
    "\u{85}",
    "\u{2028}",
    "e\u{301}",
    "\u{301}",
    "\u{327}\u{301}",
    "\u{1100}\u{1161}\u{11a8}",
    "각",
    "ﬁ",
    "Å",
    "Å",
    "①",
    "½",
    "\u{d7ff}",
    "\u{e000}",
    "\u{fffd}",
    "\u{fffe}",
    "\u{ffff}",
    "\u{10000}",
    "\u{10ffff}",
    "👩‍👩‍👧‍👦",
    "🏳️‍🌈",
    "🇩🇪",
    "👍🏽",
    "𝔘𝔫𝔦",
    "ı",
    "İ",
    "ß",
    "ẞ",
    "ﷺ",
    "𠀀",
    "꧁",
    "<0x0A>",
    "<0xE2>",
    "<s>",
    "</s>",
    "<unk>",
    "<bos>",
    "<pad>",
    "<|endoftext|>",
    "<start_of_turn>",
    "[INST]",
    "<s",
    "s>",
    "<<s>>",
    "don't",
    "I'LL",
    "1234567",
];

/// A generator of random texts.
pub struct Texts<'a> {
    rng: Rng,
    /// Pieces of the vocabulary. `added` has the added tokens.
    pieces: &'a [String],
    added: &'a [String],
    /// Further sentences, beside those of this file.
    more: &'a [String],
}

impl<'a> Texts<'a> {
    pub fn new(seed: u64, pieces: &'a [String], added: &'a [String], more: &'a [String]) -> Self {
        Self { rng: Rng::with_seed(seed), pieces, added, more }
    }

    fn sentence(&mut self) -> String {
        let at = self.rng.usize(..SENTENCES.len() + self.more.len());
        SENTENCES.get(at).map_or_else(|| self.more[at - SENTENCES.len()].clone(), |s| (*s).to_owned())
    }

    fn character(&mut self) -> char {
        let ranges: [(u32, u32); 12] = [
            (0x20, 0x7e),
            (0, 0x2ff),
            (0x300, 0x36f),
            (0x370, 0x52f),
            (0x590, 0x6ff),
            (0x900, 0xdff),
            (0xe00, 0x10ff),
            (0x2000, 0x2bff),
            (0x3000, 0x30ff),
            (0x4e00, 0x9fff),
            (0xac00, 0xd7ff),
            (0, 0x10ffff),
        ];
        loop {
            let (low, high) = ranges[self.rng.usize(..ranges.len())];
            if let Some(character) = char::from_u32(self.rng.u32(low..=high)) {
                return character;
            }
        }
    }

    /// Returns a part of a text, of a random kind.
    fn part(&mut self) -> String {
        match self.rng.u8(..12) {
            0..=2 => {
                let sentence = self.sentence();
                let words: Vec<&str> = sentence.split(' ').collect();
                let from = self.rng.usize(..words.len());
                let to = self.rng.usize(from..=words.len());
                words[from..to].join(" ")
            }
            3 | 4 => {
                let piece = self.rng.choice(self.pieces).cloned().unwrap_or_default();
                if self.rng.bool() { piece.replace('▁', " ") } else { piece }
            }
            5 => self.rng.choice(self.added).cloned().unwrap_or_default(),
            6 | 7 => (*self.rng.choice(ODD).unwrap()).to_owned(),
            8 => (0..self.rng.usize(1..8)).map(|_| self.character()).collect(),
            9 => self.character().to_string().repeat(self.rng.usize(1..70)),
            10 => self.rng.choice(ODD).unwrap().repeat(self.rng.usize(1..9)),
            _ => (0..self.rng.usize(1..20)).map(|_| self.rng.u8(b' '..=b'~') as char).collect(),
        }
    }
}

impl Iterator for Texts<'_> {
    type Item = String;

    fn next(&mut self) -> Option<String> {
        // One text in three is a plain sentence, because most texts are.
        if self.rng.u8(..3) == 0 {
            let (first, second) = (self.sentence(), self.sentence());
            return Some(match self.rng.u8(..3) {
                0 => first,
                1 => format!("{first} {second}"),
                _ => {
                    let mut characters: Vec<char> = first.chars().collect();
                    for _ in 0..self.rng.usize(1..4) {
                        let at = self.rng.usize(..characters.len());
                        characters[at] = self.character();
                    }
                    characters.into_iter().collect()
                }
            });
        }
        let separator = *self.rng.choice(&["", "", " ", "\n"]).unwrap();
        let parts: Vec<String> = (0..self.rng.usize(1..9)).map(|_| self.part()).collect();
        Some(parts.join(separator))
    }
}

/// Returns the pieces of a tokenizer.json, both in the notation of the vocabulary and as they occur in texts.
pub fn pieces(json: &[u8], reference: &HfTokenizer) -> Vec<String> {
    let value: Value = serde_json::from_slice(json).unwrap();
    let mut pieces: Vec<String> = match &value["model"]["vocab"] {
        Value::Array(entries) => entries.iter().map(|entry| entry[0].as_str().unwrap().to_owned()).collect(),
        vocabulary => vocabulary.as_object().unwrap().keys().cloned().collect(),
    };
    let plain = reference.pieces();
    pieces.extend((0..reference.vocabulary().size as u32).map(|id| {
        let mut piece = String::new();
        plain.write(id, &mut piece);
        piece
    }));
    pieces
}
