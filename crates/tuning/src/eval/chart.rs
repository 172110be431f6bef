//! Draws scores as a bar chart: a self-contained SVG file without scripts or external fonts.

use std::fmt::Write;

use super::{Kind, Score};

const WIDTH: usize = 760;
const LEFT: usize = 230;
const PLOT: usize = 460;
const TOP: usize = 64;
const BAR: usize = 20;
const GROUP_GAP: usize = 44;
/// The colors of Okabe and Ito, which people with any form of color vision can distinguish:
/// https://jfly.uni-koeln.de/color/
const COLOURS: [&str; 7] = ["#0072b2", "#e69f00", "#009e73", "#d55e00", "#56b4e9", "#cc79a7", "#999999"];

/// Returns the chart: one group of bars per kind of task, and one bar per model. A bar shows the first metric of the
/// kind, or its mean if there are several tasks.
pub fn svg(scores: &[Score]) -> String {
    let means = super::means(scores);
    let mut models: Vec<&str> = Vec::new();
    for score in scores {
        if !models.contains(&score.model.as_str()) {
            models.push(&score.model);
        }
    }
    let mut body = String::new();
    let mut y = TOP;
    for kind in Kind::ALL {
        let metric = kind.metrics().first().copied().unwrap_or_default();
        let of_kind = |all: &'_ [Score]| -> Vec<Score> {
            all.iter().filter(|s| s.kind == kind && s.metric == metric).cloned().collect()
        };
        let shown = Some(of_kind(&means)).filter(|means| !means.is_empty()).unwrap_or_else(|| of_kind(scores));
        let Some(first) = shown.first() else { continue };
        let title = format!("{}, {metric}, {}", kind.name(), first.task);
        let _ = writeln!(body, r#"<text x="24" y="{}" class="group">{}</text>"#, y + 2, escaped(&title));
        y += 14;
        for score in &shown {
            let place = models.iter().position(|model| *model == score.model).unwrap_or_default();
            let colour = COLOURS.get(place % COLOURS.len()).unwrap_or(&"#999999");
            let width = (score.value.clamp(0.0, 1.0) * PLOT as f64).round();
            let middle = y + BAR - 6;
            let _ = writeln!(
                body,
                r#"<text x="{}" y="{middle}" text-anchor="end">{}</text><rect x="{LEFT}" y="{y}" width="{width}" height="{}" fill="{colour}"/><text x="{}" y="{middle}">{:.1}</text>"#,
                LEFT - 8,
                escaped(&score.model),
                BAR - 4,
                LEFT as f64 + width + 6.0,
                100.0 * score.value,
            );
            y += BAR;
        }
        y += GROUP_GAP;
    }
    let bottom = y.saturating_sub(GROUP_GAP);
    let height = bottom + 44;
    let mut grid = String::new();
    for percent in (0..=100).step_by(20) {
        let x = LEFT + PLOT * percent / 100;
        let _ = writeln!(
            grid,
            r#"<line x1="{x}" y1="{}" x2="{x}" y2="{bottom}" class="grid"/><text x="{x}" y="{}" text-anchor="middle" class="tick">{percent}</text>"#,
            TOP + 10,
            bottom + 18,
        );
    }
    format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="Embedding quality by model">
<style>text {{ font: 13px system-ui, sans-serif; fill: #222 }} .title {{ font-size: 16px; font-weight: 600 }} .group {{ font-weight: 600 }} .tick {{ font-size: 11px; fill: #666 }} .grid {{ stroke: #ddd }}</style>
<rect width="100%" height="100%" fill="#fff"/>
<text x="24" y="32" class="title">Embedding quality, x 100 (more is better)</text>
{grid}{body}</svg>
"##
    )
}

fn escaped(text: &str) -> String {
    // XML does not allow control characters, not even as escapes.
    let text: String = text.chars().filter(|c| !c.is_control()).collect();
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::Measured;

    fn score(model: &str, kind: Kind, task: &str, value: f64) -> Score {
        let metric = kind.metrics()[0];
        Score::new(model, kind, task, 1, metric, Measured { value, estimates: Vec::new() })
    }

    #[test]
    fn bars_are_as_long_as_scores_and_several_tasks_are_one_mean() {
        let scores = [
            score("a", Kind::Sts, "en", 0.5),
            score("a", Kind::Sts, "de", 0.7),
            score("b<&", Kind::Retrieval, "x", 0.25),
            score("c", Kind::Retrieval, "x", -0.5),
        ];
        let svg = svg(&scores);
        assert!(svg.contains("mean of 2") && svg.contains(">60.0<") && svg.contains(r#"width="276""#), "{svg}");
        assert!(svg.contains("b&lt;&amp;") && svg.contains(r#"width="115""#), "{svg}");
        assert!(svg.contains(r#"width="0""#) && svg.contains(">-50.0<"), "{svg}");
    }

    #[test]
    fn nothing_is_a_chart_too() {
        assert!(svg(&[]).ends_with("</svg>\n"));
    }
}
