// The kernels under a sanitizer: every type, layout and option on memory of exactly the size that is needed, from
// several threads at once. `make sanitize` builds and runs this with each sanitizer.

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "../buffers.h"
#include "../kernel.h"
#include "../threads.h"

using namespace labelsmooth;

namespace {

size_t size_of(Type type) { return type == Type::float64 ? 8 : type == Type::float32 ? 4 : 2; }

// float32 numbers as the type has them; exact for the small whole numbers used here.
std::unique_ptr<char[]> stored(Type type, const std::vector<float>& values) {
    auto bytes = std::make_unique<char[]>(values.size() * size_of(type));
    for (size_t i = 0; i < values.size(); ++i) {
        const double wide = values[i];
        uint32_t bits;
        std::memcpy(&bits, &values[i], 4);
        uint16_t half = static_cast<uint16_t>(bits >> 16);
        if (type == Type::float16) {
            const int exponent = static_cast<int>(bits >> 23 & 255) - 127 + 15;
            half = static_cast<uint16_t>(bits == 0 ? 0 : (bits >> 16 & 0x8000) | exponent << 10 | (bits >> 13 & 0x3ff));
        }
        const void* from = type == Type::float64 ? static_cast<const void*>(&wide)
                         : type == Type::float32 ? static_cast<const void*>(&values[i])
                                                 : static_cast<const void*>(&half);
        std::memcpy(bytes.get() + i * size_of(type), from, size_of(type));
    }
    return bytes;
}

std::vector<float> whole_numbers(size_t count, std::mt19937& draws, int least, int most) {
    std::vector<float> values(count);
    std::uniform_int_distribution<int> die(least, most);
    for (float& value : values) value = static_cast<float>(die(draws));
    return values;
}

bool run(const Kernels& kernels, Type type, int64_t outer, int64_t classes, int64_t inner, int option, unsigned seed) {
    std::mt19937 draws(seed);
    const auto rows = static_cast<size_t>(outer * inner), K = static_cast<size_t>(classes);
    const Type real = type == Type::float64 ? Type::float64 : Type::float32;
    const auto logits = stored(type, whole_numbers(rows * K, draws, -8, 8));
    auto gradient = std::make_unique<char[]>(rows * K * size_of(type));
    auto losses = std::make_unique<char[]>(rows * size_of(real));
    auto labels = std::make_unique<int64_t[]>(rows);
    for (size_t i = 0; i < rows; ++i) labels[i] = draws() % 7 == 0 ? -100 : static_cast<int64_t>(draws() % K);
    const auto weight = stored(real, whole_numbers(K, draws, 0, 3));
    std::vector<float> even(K, 0), each(rows * K, 0);
    even[draws() % K] = 1;
    for (size_t i = 0; i < rows; ++i) each[i * K + draws() % K] = 1;
    const auto prior = stored(real, even), targets = stored(real, each);
    auto mask = std::make_unique<uint8_t[]>(rows);
    for (size_t i = 0; i < rows; ++i) mask[i] = draws() % 4 != 0;
    const bool each_masked = option & 8 && inner == 1;
    const size_t flags = each_masked ? rows * K : K;
    auto class_mask = std::make_unique<uint8_t[]>(flags);
    for (size_t k = 0; k < flags; ++k) class_mask[k] = 1;

    Problem p{};
    p.type = type;
    p.outer = outer, p.classes = classes, p.inner = inner;
    p.logits = logits.get();
    p.outer_stride = p.gradient_outer_stride = classes * inner;
    p.class_stride = p.gradient_class_stride = inner;
    p.gradient = option % 5 == 4 ? nullptr : gradient.get();
    p.labels = labels.get();
    p.ignore_index = -100;
    p.smoothing = 0.25;
    p.normalizer = std::nan("");
    p.mean = option % 2 == 0;
    p.upstream_scalar = 1;
    p.losses = losses.get();
    p.threads = 3;
    p.target_tolerance = p.prior_tolerance = 1e-4;
    if (option & 1) p.weight = weight.get();
    if (option & 2) p.prior = prior.get(), p.mask = mask.get();
    if (option & 4) p.weight_outside = true, p.class_mask = class_mask.get(), p.class_mask_rows = each_masked;
    if (option & 8 && inner == 1) p.labels = nullptr, p.targets = targets.get();
    if (option & 16 && inner == 1) p.prior = targets.get(), p.prior_rows = true;
    rouse();
    const int faults = kernels.cross_entropy(p);
    double sum = 0;  // of every row's gradient: p and q' both sum to what the row holds
    for (size_t i = 0; p.gradient && i < rows * K && real == type; ++i) {
        double x;
        float y;
        if (type == Type::float64) std::memcpy(&x, gradient.get() + i * 8, 8);
        else std::memcpy(&y, gradient.get() + i * 4, 4), x = y;
        sum += x;
    }
    return faults == 0 && std::abs(sum) < 1e-2 * static_cast<double>(rows);
}

// Evaluation's sums: of each row every p is in some bin, and the slope at β = 0.5 is E z - z_y.
bool evaluate(const Kernels& kernels, bool wide, int64_t rows, int64_t classes, int64_t bins, unsigned seed) {
    std::mt19937 draws(seed);
    const Type type = wide ? Type::float64 : Type::float32;
    const auto N = static_cast<size_t>(rows), K = static_cast<size_t>(classes);
    const std::vector<float> values = whole_numbers(N * K, draws, -8, 8);
    const auto logits = stored(type, values);
    auto labels = std::make_unique<int64_t[]>(N);
    for (size_t i = 0; i < N; ++i) labels[i] = static_cast<int64_t>(draws() % K);
    std::vector<float> uniform(static_cast<size_t>(bins) + 1);
    for (size_t b = 0; b < uniform.size(); ++b) uniform[b] = static_cast<float>(b) / static_cast<float>(bins);
    const auto edges = stored(type, uniform);
    const auto inverse = std::make_unique<double[]>(2);
    inverse[0] = 1, inverse[1] = 0.5;
    const auto ids = std::make_unique<int64_t[]>(2 * N);
    const auto numbers = std::make_unique<double[]>(12 * N);
    const auto cells = std::make_unique<double[]>(2 * 3 * K * static_cast<size_t>(bins));

    const Block block{wide, rows, classes, classes, logits.get(), labels.get()};
    RowSums sums{block, 2, inverse.get(), bins, edges.get(), ids.get(), numbers.get(), cells.get()};
    Slopes slopes{block, 0.5, {0, 0}};
    if (kernels.row_sums(sums) != -1 || kernels.slopes(slopes) != -1) return false;
    bool fine = true;
    double mass = 0, slope = 0;
    for (size_t j = 0; j < K * static_cast<size_t>(bins); ++j)
        mass += cells[K * static_cast<size_t>(bins) + j];
    for (size_t i = 0; i < N; ++i) {
        const float* const z = &values[i * K];
        int64_t before = 0;
        double total = 0, mean = 0;
        for (size_t k = 0; k < K; ++k) {
            const auto y = static_cast<size_t>(labels[i]);
            before += z[k] > z[y] || (z[k] == z[y] && k < y);
            total += std::exp(0.5 * z[k]), mean += z[k] * std::exp(0.5 * z[k]);
        }
        fine &= before == ids[N + i] && (before == 0) == (ids[i] == labels[i]);
        slope += mean / total - static_cast<double>(z[labels[i]]);
    }
    return fine && std::abs(mass - static_cast<double>(rows)) < 1e-3 * static_cast<double>(rows) + 1e-9 &&
           std::abs(slopes.sums[0] - slope) < 1e-3 * static_cast<double>(rows);
}

bool all_of(const Kernels& kernels, unsigned seed) {
    bool fine = true;
    for (Type type : {Type::float32, Type::float64, Type::bfloat16, Type::float16})
        for (int64_t classes : {1, 3, 17, 300})
            for (int64_t inner : {1, 5, 70})
                for (int option = 0; option < 32; ++option)
                    fine &= run(kernels, type, option % 3 + (inner == 1 ? 200 : 2), classes, inner, option, seed++);
    for (bool wide : {false, true})
        for (int64_t classes : {1, 3, 17, 64, 300, 2100})
            for (int64_t bins : {1, 2, 15, 1000}) fine &= evaluate(kernels, wide, 20, classes, bins, seed++);
    for (int i = 0; i < 200; ++i) {
        const Buffer one = acquire(static_cast<size_t>(1000 + seed % 7 * 100));
        std::memset(one.data, 1, one.capacity);
        release(one);
    }
    return fine;
}

}  // namespace

int main() {
    const std::vector<Kernels> all = runnable();
    std::vector<char> fine(all.size());
    std::vector<std::thread> callers;
    for (size_t i = 0; i < all.size(); ++i)
        callers.emplace_back([&, i] { fine[i] = all_of(all[i], static_cast<unsigned>(i) * 100000); });
    for (auto& caller : callers) caller.join();
    drop();
    bool right = true;
    for (const char each : fine) right = right && each;
    std::puts(right ? "clean" : "wrong numbers");
    return right ? EXIT_SUCCESS : EXIT_FAILURE;
}
