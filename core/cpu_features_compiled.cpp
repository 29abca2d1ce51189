#include "core/cpu_features.h"

namespace jiboia::detail {

// A macro that the compiler has set is 1 by the time it is made a text; one that it has not is its
// own name.
#define JIBOIA_TEXT(macro) #macro
#define JIBOIA_ENTRY(macro, name) {name, JIBOIA_TEXT(macro)[0] == '1'},

#define JIBOIA_EXPANDED_ENTRY(macro, name) JIBOIA_ENTRY(macro, name)
extern const CpuFeature kCpuFeatures[] = {
    JIBOIA_CPU_FEATURES(JIBOIA_EXPANDED_ENTRY){nullptr, false}};

}  // namespace jiboia::detail
