#include "mirabelle/training/parallel_plan.h"
#include <gtest/gtest.h>
