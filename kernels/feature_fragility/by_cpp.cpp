// Feature fragility, a sample at a time: bounds first, and a walk along the lines where they do not decide.
//
// A unit is the least of its lines, its class the best of its column of W2; the leading unit's class is the sample's.
// by_torch.py says how the walk goes; here it is vectors over units. Most features need none:
//
//   few rows of A move with a feature   the three smallest leaves of a unit tell the least of those that do not move.
//                                       Where no unit of another class rises above level G, the class stays until its
//                                       own units above G have fallen to it, which is a quotient for each of them
//   many move                           over a stretch of δ a unit, concave, lies above its ends and below its first
//                                       line. Units and lines that cannot matter there are left out of the walk; the
//                                       stretch doubles until the class changes or the room ends

#include "../runtime/native/native.hpp"

#include <cmath>
#include <numeric>

namespace {

using Vector = Simd<double>::Vector;
using Mask = Simd<double>::IndexVector;
constexpr int64_t WIDTH = Simd<double>::WIDTH;
constexpr double INF = std::numeric_limits<double>::infinity();
constexpr double BELOW_ZERO = -std::numeric_limits<double>::min();

struct Problem {
    int64_t samples, features, leaves, units;  // units: a multiple of WIDTH, filled up with leaves of −∞
    int64_t few;                               // whether no more than two rows of A move with any feature
    int64_t threads;
};

struct Network {
    const double* leaf;     // [leaves, units] where few rows move, else [units, leaves]
    const int64_t* classes;  // [units]
    const double* slope;    // [features, leaves]: A's transpose
    const int64_t* row;     // [features, 2]: the rows that move, where they are few; −1 for none
};

struct Change {
    double at;
    int64_t becomes;
};

constexpr Change NONE{INF, -1};

inline double lowest(Vector v) {
    double least = v[0];
    for (int64_t l = 1; l < WIDTH; ++l) least = v[l] < least ? v[l] : least;
    return least;
}

inline bool any(Mask mask) {
    int64_t bits = 0;
    for (int64_t l = 0; l < WIDTH; ++l) bits |= mask[l];
    return bits != 0;
}

inline Vector smaller(Vector x, Vector y) { return x < y ? x : y; }

// ------------------------------------------------------------------------------------------------ the walk

// Units in the order of their classes, and what they are to a sample's class.
struct Units {
    int64_t count = 0;                          // a multiple of WIDTH
    std::vector<int64_t> classes;
    std::vector<double> bar, of_own, of_rival;  // a parallel unit wins above bar; ∞ where it is no unit of that kind

    void describe(int64_t own) {
        bar.resize(count), of_own.resize(count), of_rival.resize(count);
        for (int64_t j = 0; j < count; ++j) {
            bar[j] = classes[j] < own ? BELOW_ZERO : 0;
            of_own[j] = classes[j] == own ? 0 : INF;
            of_rival[j] = classes[j] == own ? INF : 0;
        }
    }
    bool is_own(int64_t j) const { return of_own[j] == 0; }
};

struct Lines {
    std::vector<const double*> height;  // of each line the units, at δ = 0
    std::vector<double> slope;
};

class Walk {
  public:
    Walk(const Units& units, const Lines& lines) : units(units), lines(lines), count(int64_t(lines.slope.size())) {}

    // The first δ ≥ 0, below room, beyond which the class is another.
    Change first(double room) {
        if (!(room > 0)) return NONE;
        lead();
        for (int64_t turns = 0; turns <= 4 * units.count * count; ++turns) {
            double turn, beyond;
            find_turn(turn, beyond);
            double own, rival;
            starts(own, rival);
            const double until = std::min(turn, own);
            if (rival < std::min(until, room)) return {rival + 0.0, winner(rival)};  // −0 + 0 is 0
            if (!(until < room)) return NONE;
            now = until;
            if (own <= turn)
                overtake(own);
            else
                slope = beyond;
            height = INF;
            for (int64_t l = 0; l < count; ++l)
                if (lines.slope[l] == slope) height = std::min(height, lines.height[l][unit]);
        }
        return {std::nan(""), -1};
    }

  private:
    const Units& units;
    const Lines& lines;
    const int64_t count;
    int64_t unit = 0;           // that leads
    double height = 0, slope = 0;  // of its line
    double now = 0;

    void lead() {
        height = -INF, slope = -INF, unit = -1;
        for (int64_t j = 0; j < units.count; ++j) {
            if (!units.is_own(j)) continue;
            double value = INF, rises = INF;
            for (int64_t l = 0; l < count; ++l) {
                const double at = lines.height[l][j];
                if (at < value || (at == value && lines.slope[l] < rises)) value = at, rises = lines.slope[l];
            }
            if (unit < 0 || value > height || (value == height && rises > slope)) unit = j, height = value, slope = rises;
        }
    }

    void find_turn(double& turn, double& beyond) const {
        turn = beyond = INF;
        for (int64_t l = 0; l < count; ++l) {
            const double fall = slope - lines.slope[l];
            if (!(fall > 0)) continue;
            const double at = (lines.height[l][unit] - height) / fall;
            if (at < turn || (at == turn && lines.slope[l] < beyond)) turn = at, beyond = lines.slope[l];
        }
        turn = std::max(turn, now);
    }

    // Where the first unit of its own class, and the first of another, rises above the leading line.
    void starts(double& own, double& rival) const {
        Vector first_own = Vector{} + INF, first_rival = first_own;
        const Vector from = Vector{} + now, infinity = Vector{} + INF;
        for (int64_t j = 0; j < units.count; j += WIDTH) {
            Vector begin = from, end = infinity, beside = infinity;
            for (int64_t l = 0; l < count; ++l) {
                const double rise = lines.slope[l] - slope;
                const Vector gap = load<Vector>(lines.height[l] + j) - height;
                if (rise == 0)
                    beside = smaller(gap, beside);
                else if (rise > 0)
                    begin = larger(-gap / rise, begin);
                else
                    end = smaller(-gap / rise, end);
            }
            const Mask wins = (beside > load<Vector>(units.bar.data() + j)) & (begin < end);
            const Vector start = wins ? begin : infinity;
            first_own = smaller(start + load<Vector>(units.of_own.data() + j), first_own);
            first_rival = smaller(start + load<Vector>(units.of_rival.data() + j), first_rival);
        }
        own = lowest(first_own), rival = lowest(first_rival);
    }

    // Whether unit j begins at `start` to lie above the leading line; then also how it rises there.
    bool starts_at(double start, int64_t j, double& rises) const {
        double begin = -INF, end = INF, beside = INF, crossing = INF;
        double least = INF, least_slope = INF;
        for (int64_t l = 0; l < count; ++l) {
            const double rise = lines.slope[l] - slope, gap = lines.height[l][j] - height;
            if (rise == 0) beside = std::min(beside, gap);
            if (rise < 0) end = std::min(end, -gap / rise);
            if (rise > 0) {
                const double at = -gap / rise;
                if (at > begin || (at == begin && lines.slope[l] < crossing)) begin = at, crossing = lines.slope[l];
            }
            const double there = gap + rise * start;
            if (there < least || (there == least && lines.slope[l] < least_slope)) least = there, least_slope = lines.slope[l];
        }
        if (!(beside > units.bar[j] && std::max(begin, now) == start && start < end)) return false;
        rises = beside == 0 ? slope : begin >= now ? crossing : least_slope;
        return true;
    }

    int64_t winner(double start) const {
        double steepest = -INF;
        int64_t best = -1;
        for (int64_t j = 0; j < units.count; ++j) {
            double rises;
            if (units.is_own(j) || !starts_at(start, j, rises)) continue;
            if (best < 0 || rises > steepest || (rises == steepest && units.classes[j] < best))
                steepest = rises, best = units.classes[j];
        }
        return best;
    }

    void overtake(double start) {
        double steepest = -INF;
        int64_t other = unit;
        for (int64_t j = 0; j < units.count; ++j) {
            double rises;
            if (!units.is_own(j) || !starts_at(start, j, rises)) continue;
            if (rises > steepest) steepest = rises, other = j;
        }
        unit = other, slope = steepest;
    }
};

// ------------------------------------------------------------------------------------------------ a sample

// The room on one side (0 up, 1 down) for a change that is nearer than that on the other. Of equals, up counts.
inline double nearest(int side, const double* room, const Change* sides) {
    const double other = sides[1 - side].at;
    return std::min(room[side], side ? other : std::nextafter(other, INF));
}

// The value of each unit at δ = 0, and who leads.
struct Scores {
    std::vector<double> value;
    int64_t own = 0, leader = 0;
    double largest = 0, rival = 0;  // of its own class, and of all others
    bool is_fixed = false;          // whether the largest is infinite, and so stays

    void rank(const int64_t* classes) {
        leader = 0;
        for (int64_t j = 1; j < int64_t(value.size()); ++j)
            if (value[j] > value[leader] || (value[j] == value[leader] && classes[j] < classes[leader])) leader = j;
        own = classes[leader], largest = value[leader], rival = -INF;
        is_fixed = std::isinf(largest);
        for (int64_t j = 0; j < int64_t(value.size()); ++j)
            if (classes[j] != own) rival = std::max(rival, value[j]);
    }
};

class FewRows {
  public:
    FewRows(const Problem& p, const Network& net) : p(p), net(net), winners(p.leaves) {
        scores.value.resize(p.units);
        for (auto& each : smallest) each.resize(p.units);
        for (auto& each : rows) each.resize(p.units);
        for (auto& each : moving) each.resize(p.units);
        units.count = p.units;
        units.classes.assign(net.classes, net.classes + p.units);
    }

    void begin(const double* sample) {
        z = sample;
        find_smallest();
        scores.value = smallest[0];
        scores.rank(net.classes);
        units.describe(scores.own);
        others = smallest[0];
        owns.clear(), best_rivals.clear();
        is_tied = false;
        for (int64_t j = 0; j < p.units; ++j) {
            if (units.is_own(j) && scores.value[j] >= scores.rival) owns.push_back(j);
            if (units.is_own(j) && scores.value[j] == scores.rival) is_tied = true;
            if (!units.is_own(j) && scores.value[j] == scores.rival) best_rivals.push_back(j);
            if (rows[0][j] >= 0) winners[rows[0][j]].push_back(j);
        }
    }

    void end() {
        for (int64_t j = 0; j < p.units; ++j)
            if (rows[0][j] >= 0) winners[rows[0][j]].clear();
    }

    // The changes up and down of one feature, within their rooms.
    void changes(int64_t i, const double* room, Change* sides) {
        const int64_t moves[2] = {net.row[2 * i], net.row[2 * i + 1]};
        double level[2] = {scores.rival, scores.rival};
        bool rises[2] = {false, false};
        for (const int64_t r : moves) {
            if (r < 0) continue;
            for (const int64_t j : winners[r]) {
                others[j] = INF;
                for (int k = 2; k >= 0; --k)
                    if (rows[k][j] < 0 || (rows[k][j] != moves[0] && rows[k][j] != moves[1])) others[j] = smallest[k][j];
                // a rising line takes a unit of another class up to its other lines
                const int side = net.slope[i * p.leaves + r] > 0 ? 0 : 1;
                if (!units.is_own(j)) level[side] = std::max(level[side], others[j]);
                rises[side] = true;
            }
        }
        double fallen[2] = {INF, INF};
        for (int side = 0; side < 2; ++side) {
            sides[side] = NONE;
            if (scores.is_fixed || !(room[side] > 0)) continue;
            const double at = when_fallen(i, moves, side ? -1 : 1, level[side]);
            if (!(at < room[side])) continue;
            const bool is_plain = !rises[side] && !is_tied && best_rivals.size() == 1;
            if (is_plain && stays(i, moves, side ? -1 : 1, best_rivals[0], at))
                sides[side] = {at, net.classes[best_rivals[0]]};
            else
                fallen[side] = at;
        }
        const int nearer = fallen[0] <= fallen[1] ? 0 : 1;
        bool is_ready = false;
        for (const int side : {nearer, 1 - nearer}) {
            const double within = nearest(side, room, sides);
            if (!(fallen[side] < within)) continue;
            if (!is_ready) prepare(i, moves);
            is_ready = true;
            for (size_t l = 0; l < lines.slope.size(); ++l) lines.slope[l] = side ? -slopes[l] : slopes[l];
            sides[side] = Walk(units, lines).first(within);
        }
        for (const int64_t r : moves)
            if (r >= 0)
                for (const int64_t j : winners[r]) others[j] = smallest[0][j];
    }

  private:
    const Problem& p;
    const Network& net;
    const double* z = nullptr;
    std::vector<double> smallest[3], others, moving[2];
    std::vector<int64_t> rows[3];
    std::vector<std::vector<int64_t>> winners;  // of each row the units of which it is the least leaf
    std::vector<int64_t> owns, best_rivals;     // units of its own class above the level; of others at it
    std::vector<double> slopes;
    bool is_tied = false;  // whether a unit of its own class is at that level too
    Scores scores;
    Units units;
    Lines lines;

    void find_smallest() {
        constexpr int64_t BLOCK = 8 * WIDTH;
        for (int k = 0; k < 3; ++k) {
            std::fill(smallest[k].begin(), smallest[k].end(), INF);
            std::fill(rows[k].begin(), rows[k].end(), -1);
        }
        for (int64_t r = 0; r < p.leaves; ++r) {
            const double* leaf = net.leaf + r * p.units;
            for (int64_t from = 0; from < p.units; from += BLOCK) {
                const int64_t to = std::min(from + BLOCK, p.units);
                Mask is_less{};
                for (int64_t j = from; j < to; j += WIDTH)
                    is_less |= z[r] + load<Vector>(leaf + j) < load<Vector>(smallest[2].data() + j);
                if (!any(is_less)) continue;
                for (int64_t j = from; j < to; ++j) insert(z[r] + leaf[j], r, j);
            }
        }
    }

    void insert(double value, int64_t r, int64_t j) {
        if (!(value < smallest[2][j])) return;
        int k = 2;
        for (; k > 0 && value < smallest[k - 1][j]; --k)
            smallest[k][j] = smallest[k - 1][j], rows[k][j] = rows[k - 1][j];
        smallest[k][j] = value, rows[k][j] = r;
    }

    // Where the last unit of its own class above a level has fallen to it; 0 where there is none.
    double when_fallen(int64_t i, const int64_t* moves, double sign, double level) const {
        double last = 0;
        for (const int64_t j : owns) {
            if (!(scores.value[j] > level)) continue;
            double first = INF;
            for (int k = 0; k < 2; ++k) {
                if (moves[k] < 0) continue;
                const double slope = sign * net.slope[i * p.leaves + moves[k]];
                if (slope < 0) first = std::min(first, (z[moves[k]] + net.leaf[moves[k] * p.units + j] - level) / -slope);
            }
            last = std::max(last, first);
        }
        return last;
    }

    // Whether a unit whose least leaf does not rise has its value still beyond δ.
    bool stays(int64_t i, const int64_t* moves, double sign, int64_t j, double delta) const {
        for (int k = 0; k < 2; ++k) {
            if (moves[k] < 0) continue;
            const double slope = sign * net.slope[i * p.leaves + moves[k]];
            const double height = z[moves[k]] + net.leaf[moves[k] * p.units + j];
            if (slope < 0 && !((height - scores.value[j]) / -slope > delta)) return false;
        }
        return true;
    }

    void prepare(int64_t i, const int64_t* moves) {
        lines.height.assign(1, others.data());
        lines.slope.assign(1, 0);
        for (int k = 0; k < 2; ++k) {
            if (moves[k] < 0) continue;
            const double* leaf = net.leaf + moves[k] * p.units;
            const double shift = z[moves[k]];
            for (int64_t j = 0; j < p.units; ++j) moving[k][j] = shift + leaf[j];
            lines.height.push_back(moving[k].data());
            lines.slope.push_back(net.slope[i * p.leaves + moves[k]]);
        }
        slopes = lines.slope;
    }
};

class ManyRows {
  public:
    ManyRows(const Problem& p, const Network& net) : p(p), net(net), leaf(p.units * p.leaves), first(p.units) {
        scores.value.resize(p.units);
    }

    void begin(const double* z) {
        double steepest = 0;
        for (int64_t k = 0; k < p.features * p.leaves; ++k) steepest = std::max(steepest, std::fabs(net.slope[k]));
        for (int64_t j = 0; j < p.units; ++j) {
            const double* weight = net.leaf + j * p.leaves;
            double* at = leaf.data() + j * p.leaves;
            for (int64_t r = 0; r < p.leaves; ++r) at[r] = z[r] + weight[r];
            first[j] = std::min_element(at, at + p.leaves) - at;
            scores.value[j] = at[first[j]];
        }
        scores.rank(net.classes);
        least = steepest > 0 ? (scores.largest - scores.rival) / (2 * steepest) : INF;
    }

    void end() {}

    void changes(int64_t i, const double* room, Change* sides) {
        const double* slope = net.slope + i * p.leaves;
        sides[0] = sides[1] = NONE;
        bool is_open[2];
        for (int side = 0; side < 2; ++side)
            is_open[side] = !scores.is_fixed && least < room[side] && may_change(slope, side ? -1 : 1, room[side]);
        for (double stretch = std::max(4 * least, 1.0 / 64); is_open[0] || is_open[1]; stretch *= 2) {
            if (stretch > 1e30) stretch = INF;
            for (int side = 0; side < 2; ++side) {
                if (!is_open[side]) continue;
                const double sign = side ? -1 : 1, within = nearest(side, room, sides), to = std::min(stretch, within);
                if (may_change(slope, sign, to)) {
                    gather(slope, sign, to);
                    sides[side] = Walk(units, lines).first(to);
                }
                is_open[side] = sides[side].at == INF && stretch < within;
            }
        }
    }

  private:
    const Problem& p;
    const Network& net;
    std::vector<double> leaf;    // [units, leaves] of the sample
    std::vector<int64_t> first;  // the least leaf of each unit
    double least = 0;            // no change is smaller
    double floor = 0;            // the sample's class does not fall below it in this stretch
    std::vector<double> heights;
    std::vector<int64_t> kept;
    std::vector<char> matters;
    Scores scores;
    Units units;
    Lines lines;

    // The most that a unit reaches in a stretch, which its first line tells.
    double most(const double* slope, double sign, double stretch, int64_t j) const {
        const double rise = sign * slope[first[j]];
        return rise > 0 ? scores.value[j] + rise * stretch : scores.value[j];
    }

    // False only if the class stays in the stretch.
    bool may_change(const double* slope, double sign, double stretch) {
        floor = -INF;
        if (stretch == INF) return true;
        const double* at = leaf.data() + scores.leader * p.leaves;
        const double step = sign * stretch;
        Vector ends = Vector{} + scores.largest;
        int64_t r = 0;
        for (; r + WIDTH <= p.leaves; r += WIDTH) ends = smaller(load<Vector>(at + r) + load<Vector>(slope + r) * step, ends);
        floor = lowest(ends);
        for (; r < p.leaves; ++r) floor = std::min(floor, at[r] + slope[r] * step);
        floor -= 1e-9 * (std::fabs(floor) + std::fabs(scores.largest));  // what is near is walked along
        for (int64_t j = 0; j < p.units; ++j)
            if (net.classes[j] != scores.own && most(slope, sign, stretch, j) >= floor) return true;
        return false;
    }

    // The units and lines that can matter in the stretch.
    void gather(const double* slope, double sign, double stretch) {
        kept.clear();
        matters.assign(p.leaves, stretch == INF);
        for (int64_t j = 0; j < p.units; ++j) {
            if (scores.value[j] == -INF) continue;
            const double top = stretch == INF ? INF : most(slope, sign, stretch, j);
            if (!(top >= floor)) continue;
            kept.push_back(j);
            if (stretch == INF) continue;
            const double* at = leaf.data() + j * p.leaves;
            const double step = sign * stretch, reach = top + 1e-9 * (std::fabs(top) + std::fabs(scores.value[j]));
            for (int64_t r = 0; r < p.leaves; ++r) {
                const double fall = slope[r] * step;
                matters[r] |= at[r] + (fall < 0 ? fall : 0) <= reach;
            }
        }
        units.count = ceil_div(int64_t(kept.size()), WIDTH) * WIDTH;
        units.classes.assign(units.count, std::numeric_limits<int64_t>::max());
        for (size_t k = 0; k < kept.size(); ++k) units.classes[k] = net.classes[kept[k]];
        units.describe(scores.own);
        const int64_t count = std::count(matters.begin(), matters.end(), char(true));
        heights.assign(count * units.count, -INF);
        lines.height.clear(), lines.slope.clear();
        double* line = heights.data();
        for (int64_t r = 0; r < p.leaves; ++r) {
            if (!matters[r]) continue;
            for (size_t k = 0; k < kept.size(); ++k) line[k] = leaf[kept[k] * p.leaves + r];
            lines.height.push_back(line), lines.slope.push_back(sign * slope[r]);
            line += units.count;
        }
    }
};

// ------------------------------------------------------------------------------------------------ all samples

template <class Sample>
bool run(const Problem& p, const Network& net, const double* z, const double* x, double low, double high, double* change,
         int64_t* classes) {
    std::vector<Sample> samples;
    const int64_t threads = std::max<int64_t>(1, std::min(p.threads, p.samples));
    for (int64_t t = 0; t < threads; ++t) samples.emplace_back(p, net);
    std::atomic<bool> ends{true};
    for_each_task(threads, p.samples, [&](int thread, int64_t n) {
        Sample& sample = samples[thread];
        sample.begin(z + n * p.leaves);
        for (int64_t i = 0; i < p.features; ++i) {
            const int64_t at = n * p.features + i;
            const double room[2] = {high - x[at], x[at] - low};
            Change sides[2];
            sample.changes(i, room, sides);
            if (std::isnan(sides[0].at) || std::isnan(sides[1].at)) ends = false;
            const bool is_up = sides[0].at <= sides[1].at;
            change[at] = is_up ? sides[0].at : -sides[1].at;
            classes[at] = sides[is_up ? 0 : 1].becomes;
        }
        sample.end();
    });
    return ends;
}

}  // namespace

extern "C" int feature_fragility(const Problem* p, const double* leaf, const int64_t* unit_classes, const double* slope,
                                 const int64_t* row, const double* z, const double* x, double low, double high,
                                 double* change, int64_t* classes) {
    const Network net{leaf, unit_classes, slope, row};
    return guarded([&] {
        return p->few ? run<FewRows>(*p, net, z, x, low, high, change, classes)
                      : run<ManyRows>(*p, net, z, x, low, high, change, classes);
    });
}
