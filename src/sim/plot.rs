//! Finish-time curves as an SVG image.

use std::fmt::Write;

use super::outcome::Outcome;

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 460.0;
/// Around the axes: room for numbers and words.
const MARGIN: f64 = 60.0;
/// Told apart by people who see few colours, too.
const COLOURS: [&str; 6] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"];

/// One curve: how many peers are complete, over the time since the run began.
pub struct Curve {
    pub name: String,
    /// In seconds, ascending.
    finishes_s: Vec<f64>,
    /// Where the last finish would be at best.
    bound_s: f64,
}

impl Curve {
    pub fn new(name: impl Into<String>, outcome: &Outcome, bound_s: f64) -> Curve {
        let mut finishes_s: Vec<f64> =
            outcome.peers.iter().filter_map(|peer| peer.completed_at).map(|at| at.as_secs_f64()).collect();
        finishes_s.sort_by(f64::total_cmp);
        Curve { name: name.into(), finishes_s, bound_s }
    }
}

/// The curves in one picture, each beside its bound (a dashed line).
pub fn svg(curves: &[Curve]) -> String {
    let ends = curves.iter().flat_map(|curve| curve.finishes_s.last().into_iter().chain([&curve.bound_s]));
    let most_s = ends.copied().fold(1.0, f64::max) * 1.05;
    let x = |seconds: f64| MARGIN + seconds / most_s * (WIDTH - 2.0 * MARGIN);
    let y = |share: f64| HEIGHT - MARGIN - share * (HEIGHT - 2.0 * MARGIN);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n"
    );
    for step in 0..=5 {
        let (share, seconds) = (f64::from(step) / 5.0, most_s * f64::from(step) / 5.0);
        // Writing to a string cannot fail.
        let _ = writeln!(
            out,
            "<path d=\"M{:.1} {:.1}H{:.1}\" stroke=\"#ddd\"/><text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{:.0} %</text>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{seconds:.0} s</text>",
            MARGIN,
            y(share),
            WIDTH - MARGIN,
            MARGIN - 6.0,
            y(share) + 4.0,
            share * 100.0,
            x(seconds),
            HEIGHT - MARGIN + 18.0,
        );
    }
    for (at, (curve, colour)) in curves.iter().zip(COLOURS.iter().cycle()).enumerate() {
        let mut path = format!("M{:.1} {:.1}", x(0.0), y(0.0));
        for (done, finish_s) in curve.finishes_s.iter().enumerate() {
            let share = (done + 1) as f64 / curve.finishes_s.len() as f64;
            let _ = write!(path, "H{:.1}V{:.1}", x(*finish_s), y(share));
        }
        let (bound, legend) = (x(curve.bound_s), MARGIN / 2.0 + 14.0 * at as f64);
        let _ = writeln!(
            out,
            "<path d=\"{path}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>\
             <path d=\"M{bound:.1} {:.1}V{:.1}\" stroke=\"{colour}\" stroke-dasharray=\"5 4\"/>\
             <text x=\"{:.1}\" y=\"{legend:.1}\" fill=\"{colour}\">{}</text>",
            y(0.0),
            y(1.0),
            MARGIN + 8.0,
            escaped(&curve.name),
        );
    }
    out.push_str("</svg>\n");
    out
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}
