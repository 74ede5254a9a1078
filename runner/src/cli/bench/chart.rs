//! The figures of a benchmark as an SVG file that needs nothing else: tokens a second and milliseconds a step over the
//! batch size, each against the roof that reading memory sets.

mod scale;

use std::fmt::Write;

use super::roof::Roof;
use scale::Scale;

const WIDTH: f64 = 900.0;
const HEIGHT: f64 = 660.0;
/// Sides of the panels.
const LEFT: f64 = 80.0;
const RIGHT: f64 = 870.0;
/// Top and bottom of the panel of rates, and of that of times.
const RATES: (f64, f64) = (122.0, 362.0);
const TIMES: (f64, f64) = (410.0, 560.0);
/// Between a panel's side and the first batch, for labels to fit.
const INSET: f64 = 60.0;
/// Below the lowest rate, for the two labels of the first point.
const FLOOR: f64 = 40.0;
/// Labels of points and batches are at least this far apart.
const LABEL: f64 = 46.0;
/// Pieces that the roof is drawn in.
const PIECES: u32 = 32;
/// Characters of the heading and of the line below it that fit.
const HEADING: usize = 76;
const LINE: usize = 118;

/// Light, then dark. Colours are in plain rules, as not every viewer knows variables.
const STYLE: &str = "\
text{font:13px system-ui,-apple-system,'Segoe UI',Roboto,'Liberation Sans',sans-serif;fill:#1f2328}
.heading{font-size:19px;font-weight:600}.dim{fill:#59636e}.strong{font-weight:600}
.paper{fill:#fff}.grid{stroke:#dfe3e8}.axis{stroke:#818b98}
.label{paint-order:stroke;stroke:#fff;stroke-width:4px;stroke-linejoin:round}
.line{fill:none;stroke:#0969da;stroke-width:2.5;stroke-linejoin:round}.dot{fill:#0969da}
.roof{fill:none;stroke:#bc4c00;stroke-width:2;stroke-dasharray:7 5}
@media (prefers-color-scheme:dark){
text{fill:#e6edf3}.dim{fill:#9198a1}.paper{fill:#0d1117}.grid{stroke:#2a313a}.axis{stroke:#656c76}
.label{stroke:#0d1117}.line{stroke:#58a6ff}.dot{fill:#58a6ff}.roof{stroke:#f0883e}}";

/// What a chart shows.
#[derive(Clone, Debug)]
pub struct Chart {
    pub model: String,
    pub target: String,
    pub threads: usize,
    /// Its name, where the system tells it.
    pub cpu: Option<String>,
    /// Tokens of the prompt.
    pub prompt: u32,
    /// Tokens of the prompt a second.
    pub prefill: f64,
    /// Tokens that each sequence decodes.
    pub generate: u32,
    /// Tokens that each sequence has before.
    pub depth: u32,
    /// Decoding, by batch size.
    pub points: Vec<Point>,
    pub roof: Roof,
}

/// Decoding at one batch size.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    pub batch: u32,
    /// Tokens a second of all sequences.
    pub rate: f64,
}

impl Point {
    fn milliseconds(&self) -> f64 {
        f64::from(self.batch) / self.rate * 1e3
    }
}

impl Chart {
    /// The chart as an SVG document.
    pub fn svg(&self) -> String {
        let mut points = self.points.clone();
        points.sort_by_key(|p| p.batch);
        points.dedup_by_key(|p| p.batch);
        let mut svg = Svg::default();
        self.open(&mut svg);
        self.head(&mut svg);
        if let (Some(first), Some(last)) = (points.first(), points.last()) {
            let (low, high) = (f64::from(first.batch), f64::from(last.batch));
            let x = Scale::new(low, high, LEFT + INSET, RIGHT - INSET);
            self.rates(&mut svg, &x, &points);
            self.times(&mut svg, &x, &points);
            batches(&mut svg, &x, &points);
        }
        self.foot(&mut svg);
        svg.0.push_str("</svg>\n");
        svg.0
    }

    fn machine(&self) -> String {
        let threads = match self.threads {
            1 => "1 thread".to_string(),
            n => format!("{n} threads"),
        };
        let mut text = format!("{}, {threads}", self.target);
        if let Some(cpu) = &self.cpu {
            text.push_str(", ");
            text.push_str(cpu);
        }
        text
    }

    fn open(&self, svg: &mut Svg) {
        let title = escape(&format!("{}: {}", self.model, self.machine()));
        svg.line(format_args!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"{WIDTH}\" \
             height=\"{HEIGHT}\" role=\"img\">"
        ));
        svg.line(format_args!("<title>{title}</title>"));
        svg.line(format_args!("<style>{STYLE}</style>"));
        svg.line(format_args!(
            "<rect class=\"paper\" width=\"{WIDTH}\" height=\"{HEIGHT}\"/>"
        ));
    }

    /// Title, prefill and legend.
    fn head(&self, svg: &mut Svg) {
        svg.text(24.0, 34.0, "heading", "start", &cut(&self.model, HEADING));
        svg.text(24.0, 57.0, "dim", "start", &cut(&self.machine(), LINE));
        let prefill = format!(
            "prefill of {} tokens: {} tokens/s",
            self.prompt,
            number(self.prefill)
        );
        svg.text(24.0, 84.0, "strong", "start", &prefill);
        let (y, measured, roof) = (79.5, 590.0, 716.0);
        svg.path("line", &[(measured, y), (measured + 28.0, y)]);
        svg.dot(measured + 14.0, y, "measured");
        svg.text(measured + 36.0, 84.0, "", "start", "measured");
        svg.path("roof", &[(roof, y), (roof + 28.0, y)]);
        svg.text(roof + 36.0, 84.0, "", "start", "memory's limit");
    }

    fn rates(&self, svg: &mut Svg, x: &Scale, points: &[Point]) {
        let roofs = points.iter().map(|p| self.roof.rate(f64::from(p.batch)));
        let rates = points.iter().map(|p| p.rate);
        let y = Scale::around(rates.chain(roofs), RATES.1 - FLOOR, RATES.0);
        panel(svg, RATES, &y, "decode, tokens/s (log)");
        self.curves(svg, x, points, |batch, rate| (batch, y.at(rate)));
        for p in spaced(x, points) {
            let (px, py) = (x.at(f64::from(p.batch)), y.at(p.rate));
            svg.text(px, py + 20.0, "label", "middle", &number(p.rate));
        }
        if let Some(p) = points.first() {
            let share = self.roof.share(p.batch, p.rate) * 100.0;
            let text = format!("{share:.0} % of the limit at batch {}", p.batch);
            let place = (x.at(f64::from(p.batch)) - 18.0, y.at(p.rate) + 38.0);
            svg.text(place.0, place.1, "label strong", "start", &text);
        }
    }

    fn times(&self, svg: &mut Svg, x: &Scale, points: &[Point]) {
        let roof = |p: &Point| f64::from(p.batch) / self.roof.rate(f64::from(p.batch)) * 1e3;
        let times = points.iter().flat_map(|p| [p.milliseconds(), roof(p)]);
        let y = Scale::around(times, TIMES.1, TIMES.0);
        panel(svg, TIMES, &y, "latency, ms per step (log)");
        self.curves(svg, x, points, |batch, rate| {
            (batch, y.at(batch / rate * 1e3))
        });
        for p in spaced(x, points) {
            let (px, py) = (x.at(f64::from(p.batch)), y.at(p.milliseconds()));
            let text = number(p.milliseconds());
            svg.text(px, py - 10.0, "label", "middle", &text);
        }
    }

    /// The roof and what was measured; `place` gives batch and height of a batch and its rate.
    fn curves(
        &self,
        svg: &mut Svg,
        x: &Scale,
        points: &[Point],
        place: impl Fn(f64, f64) -> (f64, f64),
    ) {
        let place = |batch: f64, rate: f64| {
            let (batch, height) = place(batch, rate);
            (x.at(batch), height)
        };
        let (Some(first), Some(last)) = (points.first(), points.last()) else {
            return;
        };
        let (low, high) = (f64::from(first.batch), f64::from(last.batch));
        let mut roof: Vec<(f64, f64)> = (0..=PIECES)
            .map(|i| low * (high / low).powf(f64::from(i) / f64::from(PIECES)))
            .map(|batch| place(batch, self.roof.rate(batch)))
            .collect();
        if let (true, Some(&(px, py))) = (low == high, roof.first()) {
            roof = vec![(px - INSET, py), (px + INSET, py)];
        }
        svg.path("roof", &roof);
        let at = |p: &Point| place(f64::from(p.batch), p.rate);
        svg.path("line", &points.iter().map(at).collect::<Vec<_>>());
        for p in points {
            let (px, py) = at(p);
            let limit = self.roof.rate(f64::from(p.batch));
            let text = format!(
                "batch {}: {} tokens/s, {} ms per step; limit {} tokens/s",
                p.batch,
                number(p.rate),
                number(p.milliseconds()),
                number(limit)
            );
            svg.dot(px, py, &text);
        }
    }

    /// What the figures mean.
    fn foot(&self, svg: &mut Svg) {
        let limit = format!(
            "Limit: {} GB/s, read by {} in the same run. Each sequence decodes {} tokens {}.",
            number(self.roof.read_rate / 1e9),
            if self.threads == 1 {
                "one thread"
            } else {
                "as many threads"
            },
            self.generate,
            match self.depth {
                0 => "from an empty context".to_string(),
                depth => format!("behind {depth} others"),
            }
        );
        let steps = format!(
            "A step reads {} MB of weights and, on average, {} MB of keys and values per sequence.",
            number(self.roof.weight_bytes as f64 / 1e6),
            number(self.roof.kv_bytes / 1e6),
        );
        svg.text(24.0, 628.0, "dim", "start", &limit);
        svg.text(24.0, 647.0, "dim", "start", &steps);
    }
}

/// A panel's frame, marks and heading.
fn panel(svg: &mut Svg, (top, bottom): (f64, f64), y: &Scale, heading: &str) {
    svg.text(LEFT, top - 10.0, "strong", "start", heading);
    let most = ((bottom - top) / 18.0) as usize;
    for tick in y.ticks(most) {
        let py = y.at(tick);
        svg.path("grid", &[(LEFT, py), (RIGHT, py)]);
        svg.text(LEFT - 10.0, py + 4.5, "dim", "end", &mark(tick));
    }
    svg.path("axis", &[(LEFT, bottom), (RIGHT, bottom)]);
}

/// The axis of batch sizes under both panels.
fn batches(svg: &mut Svg, x: &Scale, points: &[Point]) {
    for p in points {
        let px = x.at(f64::from(p.batch));
        for (_, bottom) in [RATES, TIMES] {
            svg.path("axis", &[(px, bottom), (px, bottom + 5.0)]);
        }
    }
    for p in spaced(x, points) {
        let px = x.at(f64::from(p.batch));
        svg.text(px, TIMES.1 + 21.0, "dim", "middle", &p.batch.to_string());
    }
    let middle = (LEFT + RIGHT) / 2.0;
    let text = "batch size, sequences decoded together (log2)";
    svg.text(middle, TIMES.1 + 42.0, "strong", "middle", text);
}

/// The points whose labels have room next to the one before.
fn spaced<'a>(x: &'a Scale, points: &'a [Point]) -> impl Iterator<Item = &'a Point> {
    let mut free = f64::MIN;
    points.iter().filter(move |p| {
        let px = x.at(f64::from(p.batch));
        let fits = px >= free;
        if fits {
            free = px + LABEL;
        }
        fits
    })
}

/// A document under construction.
#[derive(Default)]
struct Svg(String);

impl Svg {
    fn line(&mut self, args: std::fmt::Arguments) {
        // Memory takes whatever is written to it.
        let _ = writeln!(self.0, "{args}");
    }

    fn text(&mut self, x: f64, y: f64, class: &str, anchor: &str, text: &str) {
        let text = escape(text);
        self.line(format_args!(
            "<text x=\"{x:.1}\" y=\"{y:.1}\" class=\"{class}\" text-anchor=\"{anchor}\">{text}</text>"
        ));
    }

    fn path(&mut self, class: &str, points: &[(f64, f64)]) {
        let points: Vec<String> = points
            .iter()
            .map(|(x, y)| format!("{x:.1},{y:.1}"))
            .collect();
        self.line(format_args!(
            "<polyline class=\"{class}\" points=\"{}\"/>",
            points.join(" ")
        ));
    }

    /// A point, which tells `text` to who points at it.
    fn dot(&mut self, x: f64, y: f64, text: &str) {
        let text = escape(text);
        self.line(format_args!(
            "<circle class=\"dot\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4.5\"><title>{text}</title></circle>"
        ));
    }
}

/// Text as XML has it, without the control characters that XML can't have.
fn escape(text: &str) -> String {
    let mut escaped = String::new();
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => escaped.push(' '),
            c => escaped.push(c),
        }
    }
    escaped
}

/// The first `most` characters, with a sign where there were more.
fn cut(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        None => text.to_string(),
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}

/// A figure to about three or four digits.
fn number(value: f64) -> String {
    match value {
        v if v >= 1000.0 => format!("{v:.0}"),
        v if v >= 10.0 => format!("{v:.1}"),
        v if v >= 1.0 => format!("{v:.2}"),
        v => format!("{v:.3}"),
    }
}

/// A round value as an axis marks it.
fn mark(value: f64) -> String {
    let decimals = (-value.log10().floor()).clamp(0.0, 9.0) as usize;
    format!("{value:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(points: &[(u32, f64)]) -> Chart {
        Chart {
            model: "A <small> & \"odd\" model".into(),
            target: "x86-64-v3".into(),
            threads: 2,
            cpu: Some("Some CPU @ 2.0GHz".into()),
            prompt: 512,
            prefill: 913.25,
            generate: 128,
            depth: 0,
            points: points
                .iter()
                .map(|&(batch, rate)| Point { batch, rate })
                .collect(),
            roof: Roof {
                read_rate: 12.34e9,
                weights_rate: None,
                weight_bytes: 98_000_000,
                expert_bytes: Vec::new(),
                kv_bytes: 1_510_000.0,
            },
        }
    }

    /// The text between tags, if tags nest, attributes are quoted and every entity is known.
    fn texts(xml: &str) -> Vec<String> {
        let (mut open, mut texts, mut rest) = (Vec::new(), Vec::new(), xml);
        while let Some(start) = rest.find('<') {
            texts.push(unescaped(&rest[..start]));
            let end = start + rest[start..].find('>').expect("tags end");
            let tag = &rest[start + 1..end];
            assert!(!tag.contains('<'), "{tag}");
            assert_eq!(tag.matches('"').count() % 2, 0, "{tag}");
            let name = tag.split([' ', '/']).find(|n| !n.is_empty());
            let name = name.expect("tags have names");
            if tag.starts_with('/') {
                assert_eq!(open.pop(), Some(name), "closes what is open");
            } else if !tag.ends_with('/') {
                open.push(name);
            }
            rest = &rest[end + 1..];
        }
        assert!(open.is_empty() && rest.trim().is_empty(), "{open:?} {rest}");
        texts
    }

    fn unescaped(text: &str) -> String {
        assert!(!text.contains('>'), "{text}");
        let entities = ["&lt;", "&gt;", "&quot;", "&amp;"];
        let bare = entities
            .iter()
            .fold(text.to_string(), |t, e| t.replace(e, ""));
        assert!(!bare.contains('&'), "{text}");
        let chars = ["<", ">", "\"", "&"];
        let all = entities.iter().zip(chars);
        all.fold(text.to_string(), |t, (e, c)| t.replace(e, c))
    }

    #[test]
    fn every_figure_is_in_the_text() {
        let svg = chart(&[(8, 640.0), (1, 100.0), (32, 1280.4)]).svg();
        let all = texts(&svg).join("\n");
        let figures = [
            "A <small> & \"odd\" model",
            "x86-64-v3, 2 threads, Some CPU @ 2.0GHz",
            "prefill of 512 tokens: 913.2 tokens/s",
            "100.0\n",
            "640.0\n",
            "1280\n",
            "batch 1: 100.0 tokens/s, 10.0 ms per step; limit 124.0 tokens/s",
            "batch 8: 640.0 tokens/s, 12.5 ms per step; limit 896.8 tokens/s",
            "batch 32: 1280 tokens/s, 25.0 ms per step; limit 2699 tokens/s",
            "81 % of the limit at batch 1",
            "12.3 GB/s",
            "98.0 MB of weights",
            "1.51 MB of keys and values",
            "decodes 128 tokens",
            "tokens/s (log)",
            "ms per step (log)",
            "(log2)",
        ];
        for figure in figures {
            assert!(all.contains(figure), "{figure} is missing in {all}");
        }
    }

    #[test]
    fn one_batch_and_crowded_batches_are_drawn_inside() {
        let crowd: Vec<(u32, f64)> = (1..=64).map(|b| (b, 50.0 * f64::from(b))).collect();
        for points in [&[(4, 0.02)][..], &[(1, 1e6)], &crowd] {
            let svg = chart(points).svg();
            texts(&svg);
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
            for place in svg.split("points=\"").skip(1) {
                let place = place.split('"').next().expect("quoted");
                for pair in place.split(' ') {
                    let (x, y) = pair.split_once(',').expect("a pair");
                    let (x, y): (f64, f64) = (x.parse().expect("x"), y.parse().expect("y"));
                    assert!((0.0..=WIDTH).contains(&x) && (0.0..=HEIGHT).contains(&y));
                }
            }
        }
    }

    #[test]
    fn figures_and_marks_have_digits_enough() {
        let texts = [12345.6, 123.45, 12.345, 1.2345, 0.12345].map(number);
        assert_eq!(texts, ["12346", "123.5", "12.3", "1.23", "0.123"]);
        assert_eq!(
            [2000.0, 5.0, 0.5, 0.02].map(mark),
            ["2000", "5", "0.5", "0.02"]
        );
        assert_eq!(
            (cut("abcd", 4), cut("äbcde", 4)),
            ("abcd".into(), "äbcd…".into())
        );
        assert_eq!(escape("a\u{1}<b>"), "a &lt;b&gt;");
    }
}
