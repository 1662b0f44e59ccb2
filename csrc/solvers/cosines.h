// x = C+ p for the cosine matrix C of the tasks with a nonzero gradient, and what goes with it.
//
// It asks for the direction whose cosines with the task gradients are proportional to p. Where C has
// full rank the Cholesky factor answers, else the eigenpairs; at the change C is singular to
// rounding, so that there is no answer to jump from. A component of p that is rounding beside |p|
// counts as zero: opposite gradients have no common direction, and no noise for one either.
#pragma once

#include "jacobi.h"
#include "solver.h"

namespace mtlfast {

class Cosines {
 public:
  static MTLFAST_HD int64 workspace(int num_tasks) {
    return 4 * num_tasks + Spectrum::workspace(num_tasks);
  }

  // `preference` is p, or null for ones; entries of tasks without a gradient are not read.
  MTLFAST_HD Cosines(int num_tasks, const double* gramian, const double* preference, Lanes lanes,
                     double* workspace)
      : num_tasks_(num_tasks), energy_(0.0), lanes_(lanes) {
    inverse_norms_ = workspace;
    solution_ = inverse_norms_ + num_tasks;
    reached_ = solution_ + num_tasks;
    double* right = reached_ + num_tasks;
    for (int i = lanes_.index(); i < num_tasks; i += lanes_.count()) {
      const double squared = gramian[static_cast<int64>(i) * num_tasks + i];
      const bool alive = squared > 0.0;
      inverse_norms_[i] = alive ? 1.0 / sqrt(squared) : 0.0;
      right[i] = !alive ? 0.0 : preference != nullptr ? preference[i] : 1.0;
      reached_[i] = right[i];
      solution_[i] = 0.0;
    }
    lanes_.sync();
    Spectrum spectrum(num_tasks, gramian, inverse_norms_, lanes_, right + num_tasks);
    num_alive_ = spectrum.num_alive();
    full_rank_ = spectrum.full_rank();
    converged_ = true;
    if (full_rank_) {
      spectrum.solve(right, solution_);
      energy_ = spectrum.dot(solution_, reached_);
    } else {
      project(spectrum, right);
    }
  }

  MTLFAST_HD int num_alive() const { return num_alive_; }  // tasks with a nonzero gradient
  MTLFAST_HD bool full_rank() const { return full_rank_; }
  MTLFAST_HD bool converged() const { return converged_; }
  MTLFAST_HD double inverse_norm(int i) const { return inverse_norms_[i]; }  // 0: no gradient
  MTLFAST_HD double solution(int i) const { return solution_[i]; }           // x
  MTLFAST_HD double reached(int i) const { return reached_[i]; }             // C x
  MTLFAST_HD double energy() const { return energy_; }                       // x'C x

 private:
  static constexpr double kNoise = 4.0 * kEpsilon;  // of a component of p, to K |p|

  MTLFAST_HD void project(Spectrum& spectrum, const double* right) {
    converged_ = spectrum.diagonalise();
    const double noise = kNoise * num_tasks_ * sqrt(spectrum.dot(right, right));
    fill(reached_, num_tasks_, 0.0, kOk, lanes_);
    for (int k = 0; k < spectrum.rank(); ++k) {
      const double* column = spectrum.column(k);
      const double value = spectrum.value(k);
      const double root = sqrt(value);
      const double component = spectrum.dot(column, right) / root;
      if (!(fabs(component) > noise)) continue;
      energy_ += component * component / value;
      for (int i = lanes_.index(); i < num_tasks_; i += lanes_.count()) {
        const double share = component / root * column[i];
        reached_[i] += share;
        solution_[i] += share / value;
      }
    }
    lanes_.sync();
  }

  int num_tasks_;
  int num_alive_;
  bool full_rank_;
  bool converged_;
  double energy_;
  Lanes lanes_;
  double* inverse_norms_;  // [K]
  double* solution_;       // [K]
  double* reached_;        // [K]
};

}  // namespace mtlfast
