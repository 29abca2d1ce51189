# Run at every build: writes OUTPUT, a header that defines JIBOIA_COMMIT, when the commit of SOURCE
# has changed. Works without git and outside a checkout.
cmake_minimum_required(VERSION 3.25)
execute_process(COMMAND git -C ${SOURCE} describe --always --exclude=* --abbrev=12 --dirty=-modified
                OUTPUT_VARIABLE commit OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET
                RESULT_VARIABLE failed)
if(failed)
  set(commit unknown)
endif()
file(CONFIGURE OUTPUT ${OUTPUT} CONTENT "#define JIBOIA_COMMIT \"@commit@\"\n" @ONLY)
