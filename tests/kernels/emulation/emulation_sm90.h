#pragma once
#include "emulation_products.h"
